"""PEFT adapters on disk: the one reader for everything that serves or merges one, and whether it fits a base."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from gptoss_rl.models.folder import CheckpointError, base_fingerprint, read_object
from gptoss_rl.sync.lora_payload import split_peft_name

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_KEY = "base_fingerprint"  # in the metadata of the adapter's safetensors
# Fields of adapter_config.json under any value of which the adapted weight is W + s B A. A field that is not listed, and
# so any field of a later PEFT, must be empty.
HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
    "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "megatron_core", "qalora_group_size", "use_rslora", "init_lora_weights", "bias",
}  # fmt: skip
# The other ways to start an adapter (pissa, olora, corda, loftq) also change the base weights.
HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Adapter:
    """A plain LoRA, by the names of the base weights it changes: each is W + s B A."""

    pairs: dict[str, dict[str, torch.Tensor]]  # weight -> {"A": (r, in), "B": (out, r)}
    scaling: float
    rank: int


def read_scaling(path: Path) -> tuple[float, int]:
    """Scaling and rank of an adapter, from its adapter_config.json: s = alpha / r, or alpha / sqrt(r) for rsLoRA.

    Raises:
        CheckpointError: a field says that the adapted weight is not W + s B A with one s and one r; all such are named.
    """
    config = read_object(path)
    strange = [name for name, value in config.items() if value and name not in HARMLESS]
    if config.get("bias", "none") != "none":
        strange.append("bias")
    if config.get("init_lora_weights") not in HARMLESS_STARTS:
        strange.append("init_lora_weights")
    if config.get("peft_type") != "LORA":
        strange.append("peft_type")
    if strange:
        used = ", ".join(f"{name} = {config.get(name)!r:.60}" for name in sorted(strange))
        raise CheckpointError(f"{path} has {used}, so that it is no plain LoRA; merge it with PEFT's merge_and_unload")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: r is {rank!r} and lora_alpha {alpha!r}, which are no rank and no factor")
    return (alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank), rank


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT adapter directory whole; it is small.

    Raises:
        CheckpointError: files are missing or damaged, a setting or a tensor is not that of a plain LoRA, a module lacks A or
            B, shapes contradict the rank, or a value is not finite.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is no PEFT adapter in safetensors form: it has no {name}")
    scaling, rank = read_scaling(folder / ADAPTER_CONFIG)
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / ADAPTER_WEIGHTS} is damaged: {error}") from error
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        try:
            module, matrix = split_peft_name(name)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}, and no other tensors are known here") from error
        if pairs.setdefault(f"{module}.weight", {}).setdefault(matrix, tensor) is not tensor:
            raise CheckpointError(f"{folder}: {name} is there under two names")
        if tensor.ndim != 2 or tensor.shape[0 if matrix == "A" else 1] != rank:
            raise CheckpointError(f"{folder}: {name} has shape {tuple(tensor.shape)}, which is not of rank {rank}")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{folder}: {name} holds values that are not finite")
    incomplete = sorted(name for name, pair in pairs.items() if len(pair) != 2)
    if incomplete or not pairs:
        raise CheckpointError(f"{folder}: {incomplete[0] if incomplete else 'no module'} has not both lora_A and lora_B")
    return Adapter(pairs, scaling, rank)


def check_shapes(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], base: Path) -> None:
    """
    Args:
        shapes: of the base's tensors by name.

    Raises:
        CheckpointError: an adapted weight is not in the base, or has another shape.
    """
    unknown = sorted(adapter.pairs.keys() - shapes.keys())
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} of {len(adapter.pairs)} adapted weights are not in {base}, first {unknown[0]}: the adapter "
            "was trained on another model"
        )
    for name, pair in adapter.pairs.items():
        shape = (pair["B"].shape[0], pair["A"].shape[1])
        if tuple(shapes[name]) != shape:
            raise CheckpointError(
                f"{name} is {tuple(shapes[name])} in {base} and {shape} in the adapter: another model's adapter"
            )


def check_base(adapter: Path, model: Path) -> str | None:
    """See that an adapter was trained on `model`, in either of its forms, as far as the adapter says.

    Returns:
        What cannot be told, as a sentence for a warning; None when everything can.

    Raises:
        CheckpointError: it was trained on another base.
    """
    try:
        with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
            trained_on = (file.metadata() or {}).get(BASE_KEY)
    except SafetensorError as error:
        raise CheckpointError(f"{adapter / ADAPTER_WEIGHTS} is damaged: {error}") from error
    if trained_on is None:
        return f"{adapter} does not say which base it was trained on; that it is {model} is taken on trust"
    earlier = "-" not in trained_on  # of a run before the fingerprint covered larger weights
    here = base_fingerprint(model, small_only=earlier)
    if trained_on != here:
        name = read_object(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
        what = "norms, sinks or biases" if earlier else "norms, sinks, biases, attention or embeddings"
        raise CheckpointError(
            f"{adapter} was trained on another base: {name} (fingerprint {trained_on}), while {model} has {here}; {what} "
            "differ. Name the base that it was trained on, not one that something was merged into"
        )
    if earlier:
        return (
            f"{adapter} has an earlier fingerprint of its base, of norms, sinks and biases alone: that nothing was merged into "
            f"{model} is taken on trust"
        )
    return None
