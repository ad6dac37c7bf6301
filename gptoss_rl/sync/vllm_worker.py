"""The worker side of weight sync, mixed into vLLM's worker class through `worker_extension_cls`.

Importing this module also installs three small hooks in vLLM, in every worker process and before the model
is loaded: LoRA is restricted to the attention projections; the fused projection's adapter is applied without
gathering what is not spread over ranks; and in merge mode the pristine projection weights are kept (vLLM's
CPU backend packs a linear layer's weight away and deletes the tensor). And tqdm is given a lock of this
process alone: its own is a named semaphore, which stays in /dev/shm when Ray ends the engine with SIGKILL,
as it does at the end of every run.

Answers are plain dicts of strings and numbers, because nothing else survives `collective_rpc`, and errors are
returned, not raised: an exception inside a worker surfaces in the trainer as a dead engine without a reason.
"""

import hashlib
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
import vllm.lora.model_manager
from tqdm import tqdm
from vllm.config import get_current_vllm_config
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedQKVParallelLinearWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

from gptoss_rl.sync.lora_payload import Manifest, tensor_digest, unpack

# vLLM's fused projection -> the Hugging Face projections it holds, in the order in which it holds them.
FUSED_PROJECTIONS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "o_proj": ("o_proj",)}
MERGE_MODE_KEY = "gptoss_rl_merge"  # in vLLM's additional_config: this engine's adapters are merged


def _attention_projections_only(model: torch.nn.Module) -> list[str]:
    # By default vLLM also wraps the expert layers, which costs memory and rejects MXFP4 experts.
    return list(FUSED_PROJECTIONS)


def _keep_pristine_weight(process_weights):
    def wrapper(self, layer: torch.nn.Module) -> None:
        target = getattr(layer, "prefix", "").rsplit(".", 1)[-1]
        if target in FUSED_PROJECTIONS and get_current_vllm_config().additional_config.get(MERGE_MODE_KEY):
            layer.pristine_weight = layer.weight.detach().to("cpu", copy=True)
        process_weights(self, layer)

    wrapper.gptoss_rl = True
    return wrapper


def _install_hooks() -> None:
    tqdm.set_lock(threading.RLock())
    vllm.lora.model_manager.get_supported_lora_modules = _attention_projections_only
    # vLLM 0.20.2 gathers A x over the ranks there, as if A were spread over them (column_parallel_linear.py:286-296).
    # Every rank holds all of A, so that B would meet n times its rank: an error on a CPU, memory beyond B on a GPU.
    MergedQKVParallelLinearWithLoRA.apply = BaseLinearLayerWithLoRA.apply
    if not hasattr(UnquantizedLinearMethod.process_weights_after_loading, "gptoss_rl"):
        UnquantizedLinearMethod.process_weights_after_loading = _keep_pristine_weight(
            UnquantizedLinearMethod.process_weights_after_loading
        )


_install_hooks()


@dataclass
class Projection:
    """One fused projection of the served model, and the slices of it that Hugging Face knows by name."""

    layer: torch.nn.Module
    modules: tuple[str, ...]  # Hugging Face paths
    sizes: tuple[int, ...]  # rows of this worker's weight that belong to each of them


def _hf_modules(vllm_name: str) -> tuple[str, ...]:
    """`model.layers.0.attn.qkv_proj` -> the Hugging Face paths of q, k and v."""
    parent, _, fused = vllm_name.rpartition(".")
    parent = parent.removesuffix(".attn") + ".self_attn"
    return tuple(f"{parent}.{target}" for target in FUSED_PROJECTIONS[fused])


def _name_difference(expected: set[str], got: set[str]) -> str:
    parts = []
    if expected - got:
        parts.append(f"missing: {', '.join(sorted(expected - got)[:4])}")
    if got - expected:
        parts.append(f"unknown: {', '.join(sorted(got - expected)[:4])}")
    return "; ".join(parts)


class PolicySyncWorker:
    """Methods that the engine calls on each of its workers. Their names must not exist on vLLM's `Worker`."""

    def policy_apply(self, manifest_json: str, payload: bytes) -> dict[str, Any]:
        """Serve the adapter in `payload` and say what is now being served.

        Returns:
            tp_rank, tp_size, version, payload_sha256, modules (path -> digest in adapter mode, or in merge
            mode path -> what `_policy_merged_proof` says), seconds by phase, and error (None or the reason).
        """
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        answer: dict[str, Any] = {
            "tp_rank": get_tensor_model_parallel_rank(),
            "tp_size": get_tensor_model_parallel_world_size(),
            "version": getattr(self, "policy_version", 0),
            "payload_sha256": None,
            "modules": {},
            "seconds": {},
            "error": None,
        }
        try:
            manifest = Manifest.from_json(manifest_json)
            start = time.perf_counter()
            answer["payload_sha256"] = hashlib.sha256(payload).hexdigest()
            answer["seconds"]["hash"] = time.perf_counter() - start
            if answer["payload_sha256"] != manifest.sha256:
                answer["error"] = "the payload's SHA-256 is not the manifest's: bytes changed on the way"
                return answer
            start = time.perf_counter()
            matrices = unpack(manifest, bytearray(payload))
            merge = bool(self.vllm_config.additional_config.get(MERGE_MODE_KEY))
            (self._policy_merge if merge else self._policy_load_slot)(manifest, matrices)
            answer["seconds"]["apply"] = time.perf_counter() - start
            start = time.perf_counter()
            self.policy_version = manifest.version
            answer["version"] = self.policy_version
            answer["modules"] = self._policy_merged_proof() if merge else self._policy_slot_digests(manifest.rank)
            answer["seconds"]["read_back"] = time.perf_counter() - start
        except Exception as error:  # whatever it is, the trainer must be told which worker and why (see above)
            answer["error"] = f"{type(error).__name__}: {error}"
        return answer

    def _policy_load_slot(self, manifest: Manifest, matrices: dict[tuple[str, str], torch.Tensor]) -> None:
        manager = self.model_runner.lora_manager._adapter_manager
        expected = {path for name in manager.modules for path in _hf_modules(name)}
        if difference := _name_difference(expected, set(manifest.modules())):
            raise ValueError(f"the adapter's modules are not the served ones ({difference})")
        tensors = {f"base_model.model.{module}.lora_{matrix}.weight": t for (module, matrix), t in matrices.items()}
        # alpha only enters vLLM as alpha / r, and the manifest carries that quotient.
        peft = PEFTHelper(r=manifest.rank, lora_alpha=manifest.scaling * manifest.rank, target_modules=[])
        lora = LoRAModel.from_lora_tensors(
            manifest.version,
            tensors,
            peft,
            device="cpu",
            dtype=self.vllm_config.lora_config.lora_dtype,
            weights_mapper=self.model_runner.model.hf_to_vllm_mapper,
        )
        manager.remove_all_adapters()
        manager.add_adapter(lora)
        manager.activate_adapter(manifest.version)

    def _policy_slot_digests(self, rank: int) -> dict[str, str]:
        """Digest of (A, scaled B) per module, read from the tensors that the LoRA kernels read."""
        digests = {}
        for name, layer in self.model_runner.lora_manager._adapter_manager.modules.items():
            for path, a, b in zip(_hf_modules(name), layer.lora_a_stacked, layer.lora_b_stacked, strict=True):
                if a[0, 0, rank:].any() or b[0, 0, :, rank:].any():
                    raise ValueError(f"{path}: the slot holds values beyond rank {rank}")
                digests[path] = tensor_digest(a[0, 0, :rank], b[0, 0, :, :rank])
        return digests

    def _policy_projections(self) -> list[Projection]:
        projections = []
        for name, layer in self.model_runner.model.named_modules():
            target = name.rsplit(".", 1)[-1]
            if target not in FUSED_PROJECTIONS or not isinstance(layer, LinearBase):
                continue
            sizes = (layer.output_size,)
            if target == "qkv_proj":
                kv = layer.num_kv_heads * layer.head_size
                sizes = (layer.num_heads * layer.head_size, kv, kv)
            projections.append(Projection(layer, _hf_modules(name), sizes))
        return projections

    def _policy_merge(self, manifest: Manifest, matrices: dict[tuple[str, str], torch.Tensor]) -> None:
        """W = pristine + scaling * B A, in float32, rounded once. Never added to what the last sync left."""
        projections = self._policy_projections()
        expected = {path for projection in projections for path in projection.modules}
        if difference := _name_difference(expected, set(manifest.modules())):
            raise ValueError(f"the adapter's modules are not the served ones ({difference})")
        self._policy_deltas = {}
        for projection in projections:
            merged, start = projection.layer.pristine_weight.clone(), 0
            for path, rows in zip(projection.modules, projection.sizes, strict=True):
                a, b = _worker_shard(projection.layer, path, matrices[path, "A"], matrices[path, "B"])
                delta = self._policy_deltas[path] = manifest.scaling * (b.float() @ a.float())
                block = merged[start : start + rows]
                block.copy_(block.float() + delta)
                start += rows
            _serve_weight(projection.layer, merged)

    def _policy_merged_proof(self) -> dict[str, list[float]]:
        """What the served weights are, read back from where a forward pass reads them.

        Returns:
            path -> [norm of the exact delta, norm of (served - pristine - delta) i.e. what rounding lost,
            entries that are not round(pristine + delta)].
        """
        proof = {}
        for projection in self._policy_projections():
            served, start = _served_weight(projection.layer), 0
            for path, rows in zip(projection.modules, projection.sizes, strict=True):
                block = slice(start, start + rows)
                pristine, delta = projection.layer.pristine_weight[block], self._policy_deltas[path]
                wanted = (pristine.float() + delta).to(pristine.dtype).float()
                lost = served[block] - pristine.float() - delta
                wrong = (served[block] != wanted).sum().item()
                proof[path] = [delta.norm().item(), lost.norm().item(), float(wrong)]
                start += rows
        self._policy_deltas = {}
        return proof


def _worker_shard(layer: torch.nn.Module, path: str, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """This worker's part of A and B, by the layer's own account of its heads."""
    target = path.rsplit(".", 1)[-1]
    if target == "o_proj":
        columns = layer.input_size_per_partition
        return a[:, layer.tp_rank * columns : (layer.tp_rank + 1) * columns], b
    heads = layer.num_heads if target == "q_proj" else layer.num_kv_heads
    rank = layer.tp_rank if target == "q_proj" else layer.tp_rank // layer.num_kv_head_replicas
    rows = heads * layer.head_size
    return a, b[rank * rows : (rank + 1) * rows]


def _serve_weight(layer: torch.nn.Module, weight: torch.Tensor) -> None:
    if hasattr(layer, "cpu_linear"):
        # The CPU backend reads a packed copy, not `layer.weight`: writing the tensor alone would change nothing.
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    else:
        layer.weight.data.copy_(weight)


def _served_weight(layer: torch.nn.Module) -> torch.Tensor:
    """The weight that a forward pass multiplies with, in float32 on the CPU, of shape (out, in).

    On the CPU backend it is read through the linear kernel itself, since the packed form has no other reader:
    an identity input returns the weight's columns exactly (every product is w * 1, every other term 0).
    """
    if hasattr(layer, "cpu_linear"):
        identity = torch.eye(layer.pristine_weight.shape[1], dtype=layer.pristine_weight.dtype)
        return layer.cpu_linear(identity, layer.weight, None).T.float()
    return layer.weight.detach().float().cpu()
