"""One LoRA adapter as one flat buffer with a manifest, and the digests that prove who holds what.

The trainer packs, the vLLM workers unpack. Names are Hugging Face module paths without PEFT's wrapping
(`model.layers.0.self_attn.q_proj`), because those are the names both sides can derive by themselves.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class TensorSlot:
    """Where one LoRA matrix lies in the buffer."""

    module: str  # e.g. "model.layers.0.self_attn.q_proj"
    matrix: str  # "A" (rank, in_features) or "B" (out_features, rank)
    shape: tuple[int, int]
    offset: int  # elements from the start of the buffer


@dataclass(frozen=True)
class Manifest:
    """Everything a worker needs to rebuild the adapter from the buffer, and to prove that it did."""

    version: int
    rank: int
    scaling: float  # alpha / r, multiplied into B by the receiver
    dtype: str
    tensors: tuple[TensorSlot, ...]
    nbytes: int
    sha256: str  # of the whole buffer

    def modules(self) -> list[str]:
        """Module paths in order, each once."""
        return list(dict.fromkeys(slot.module for slot in self.tensors))

    def to_json(self) -> str:
        # JSON, because dataclasses cross vLLM's collective_rpc as bare dicts.
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Manifest":
        fields = json.loads(text)
        slots = (TensorSlot(s["module"], s["matrix"], tuple(s["shape"]), s["offset"]) for s in fields.pop("tensors"))
        return Manifest(tensors=tuple(slots), **fields)


def split_peft_name(name: str) -> tuple[str, str]:
    """`base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight` -> (module path, "A" or "B").

    Raises:
        ValueError: the name is not a LoRA matrix of PEFT's default adapter.
    """
    stem = name.removeprefix("base_model.model.")
    for matrix in "AB":
        for suffix in (f".lora_{matrix}.default.weight", f".lora_{matrix}.weight"):
            if stem.endswith(suffix):
                return stem.removesuffix(suffix), matrix
    raise ValueError(f"{name!r} is not a LoRA weight of PEFT's default adapter")


def pack(
    tensors: Mapping[tuple[str, str], torch.Tensor], *, version: int, rank: int, scaling: float
) -> tuple[Manifest, torch.Tensor]:
    """Copy all matrices into one contiguous CPU buffer.

    Args:
        tensors: (module, "A" | "B") -> matrix; all of one dtype.

    Returns:
        The manifest and the buffer, uint8 of shape (nbytes,).

    Raises:
        ValueError: no tensors, or more than one dtype.
    """
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1:
        raise ValueError(f"a LoRA payload needs tensors of exactly one dtype, got {sorted(map(str, dtypes))}")
    dtype = dtypes.pop()
    flat = torch.empty(sum(t.numel() for t in tensors.values()), dtype=dtype)
    slots, offset = [], 0
    for (module, matrix), tensor in sorted(tensors.items()):
        flat[offset : offset + tensor.numel()].copy_(tensor.detach().reshape(-1))
        slots.append(TensorSlot(module, matrix, tuple(tensor.shape), offset))
        offset += tensor.numel()
    buffer = flat.view(torch.uint8)
    manifest = Manifest(
        version=version,
        rank=rank,
        scaling=scaling,
        dtype=str(dtype).removeprefix("torch."),
        tensors=tuple(slots),
        nbytes=buffer.numel(),
        sha256=hashlib.sha256(buffer.numpy()).hexdigest(),
    )
    return manifest, buffer


def unpack(manifest: Manifest, payload: bytearray) -> dict[tuple[str, str], torch.Tensor]:
    """The matrices of a payload, as writable views of it. The caller owns `payload` and gives it up.

    vLLM multiplies the scaling into B in place, so every apply needs a buffer of its own.

    Raises:
        ValueError: the payload's length is not the manifest's.
    """
    if len(payload) != manifest.nbytes:
        raise ValueError(f"payload has {len(payload)} bytes, manifest says {manifest.nbytes}")
    flat = torch.frombuffer(payload, dtype=DTYPES[manifest.dtype])
    return {
        (slot.module, slot.matrix): flat[slot.offset : slot.offset + slot.shape[0] * slot.shape[1]].view(slot.shape)
        for slot in manifest.tensors
    }


def tensor_digest(*tensors: torch.Tensor) -> str:
    """First 16 hex digits of the SHA-256 of the tensors' bytes, in order. Equal bits, equal digest."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class HeadLayout:
    """How vLLM spreads attention over tensor-parallel ranks (`QKVParallelLinear`, vllm 0.20.2 linear.py)."""

    head_dim: int
    num_heads: int
    num_kv_heads: int

    def shard_B_rows(self, target: str, tp_rank: int, tp_size: int) -> slice | None:
        """Rows of B that a rank holds; None means all of them."""
        if target == "q_proj":
            rows = self.num_heads * self.head_dim // tp_size
            return slice(tp_rank * rows, (tp_rank + 1) * rows)
        if target in ("k_proj", "v_proj"):
            # With more ranks than key-value heads each head is held by several neighbouring ranks.
            replicas = max(1, tp_size // self.num_kv_heads)
            rows = max(1, self.num_kv_heads // tp_size) * self.head_dim
            shard = tp_rank // replicas
            return slice(shard * rows, (shard + 1) * rows)
        return None

    def shard_A_columns(self, target: str, tp_rank: int, tp_size: int) -> slice | None:
        """Columns of A that a rank holds (o_proj is row-parallel, so its input is split); None means all."""
        if target == "o_proj":
            columns = self.num_heads * self.head_dim // tp_size
            return slice(tp_rank * columns, (tp_rank + 1) * columns)
        return None


def shard(
    matrices: Mapping[tuple[str, str], torch.Tensor],
    module: str,
    layout: HeadLayout,
    tp_rank: int,
    tp_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The (A, B) of one module that tensor-parallel rank `tp_rank` of `tp_size` must hold, unscaled.

    Written from the head layout, not from vLLM's slicing code: the proof is only worth something if the two
    sides compute the shard independently.
    """
    target = module.rsplit(".", 1)[-1]
    a, b = matrices[module, "A"], matrices[module, "B"]
    columns = layout.shard_A_columns(target, tp_rank, tp_size)
    rows = layout.shard_B_rows(target, tp_rank, tp_size)
    return (a if columns is None else a[:, columns]), (b if rows is None else b[rows])


def expected_digests(
    matrices: Mapping[tuple[str, str], torch.Tensor],
    modules: list[str],
    layout: HeadLayout,
    scaling: float,
    tp_rank: int,
    tp_size: int,
) -> dict[str, str]:
    """Digest of (A, scaling * B) per module as the given worker must hold it in its LoRA slot."""
    digests = {}
    for module in modules:
        a, b = shard(matrices, module, layout, tp_rank, tp_size)
        # Rounded in the payload's dtype, as vLLM does (`LoRALayerWeights.optimize`).
        digests[module] = tensor_digest(a, b * scaling)
    return digests


def delta_norm(a: torch.Tensor, b: torch.Tensor, scaling: float) -> float:
    """Frobenius norm of scaling * B @ A, through two r x r Gram matrices instead of the full product."""
    a, b = a.float(), b.float()
    return scaling * torch.sqrt(((b.T @ b) * (a @ a.T)).sum().clamp(min=0)).item()
