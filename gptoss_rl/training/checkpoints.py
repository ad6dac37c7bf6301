"""What is written of a policy: the adapter alone, and atomically."""

import json
import os
import random
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors.torch import load_file, save_file

from gptoss_rl.errors import GateError
from gptoss_rl.models.adapter import BASE_KEY, check_base
from gptoss_rl.models.folder import CheckpointError, base_fingerprint
from gptoss_rl.run_files import write_text_atomically
from gptoss_rl.sync.lora_payload import split_peft_name
from gptoss_rl.sync.lora_sync import check_finite_lora, lora_parameters

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def save_adapter(model: PeftModel, folder: str | Path) -> None:
    """Write a PEFT adapter folder, gathering the LoRA matrices alone. Collective; rank 0 writes.

    Upstream gathers the whole model (42 GB) for a 32 MB adapter and puts the base model's config beside it,
    which makes loaders take the folder for a full checkpoint.

    Raises:
        GateError: a matrix is not finite; what was there before stays.
    """
    parameters = lora_parameters(model)
    partitioned = any(hasattr(p, "ds_id") for p in parameters.values())
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=partitioned):
        if dist.is_initialized() and dist.get_rank() != 0:
            return
        matrices = {key: p.detach().to("cpu", copy=True).contiguous() for key, p in parameters.items()}
    check_finite_lora(matrices)
    state = {f"base_model.model.{module}.lora_{matrix}.weight": t for (module, matrix), t in matrices.items()}
    write_folder_atomically(Path(folder), lambda temporary: _write_adapter(model, state, temporary))


def _write_adapter(model: PeftModel, state: dict[str, Any], folder: Path) -> None:
    config = model.peft_config["default"]
    metadata = {"format": "pt", BASE_KEY: fingerprint_of_base(config.base_model_name_or_path)}
    save_file(state, folder / "adapter_model.safetensors", metadata=metadata)
    training = config.inference_mode
    config.inference_mode = True
    try:
        config.save_pretrained(folder)
    finally:
        config.inference_mode = training


@lru_cache(maxsize=1)
def fingerprint_of_base(path: str) -> str:
    """Of the policy's base; kept, so that a base that is moved during a run costs no checkpoint.

    Raises:
        CheckpointError: it is no local checkpoint. Called before step 1, for the same reason.
    """
    return base_fingerprint(Path(path))


def write_folder_atomically(folder: Path, write) -> None:
    """Fill a temporary sibling by `write(path)`, then put it in place of `folder`.

    An existing folder is moved aside before and deleted after the rename, so a crash leaves the old one, the
    new one, or the old one under its `.old` name; never a mixture.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def random_states() -> dict[str, Any]:
    """States of the generators that a trainer process draws from."""
    numpy_state = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "torch": torch.get_rng_state(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])


def save_lora_checkpoint(engine: Any, folder: str, tag: str, client_states: dict[str, Any], keep: int) -> None:
    """Write a checkpoint to resume from: adapter, optimizer, scheduler, counters, random states. Collective.

    The frozen base weights stay out of it. It is written under a temporary name, made the latest by one
    rename, and only then are older ones removed down to `keep`.
    """
    root = Path(folder)
    temporary = f".{tag}.tmp"
    if _rank() == 0:
        shutil.rmtree(root / temporary, ignore_errors=True)
    _barrier()
    states = {**client_states, "random_states": random_states()}
    engine.save_checkpoint(folder, tag=temporary, client_state=states, save_latest=False, exclude_frozen_parameters=True)
    save_adapter(engine.module, root / temporary / "adapter")
    _barrier()
    if _rank() == 0:
        shutil.rmtree(root / tag, ignore_errors=True)
        os.replace(root / temporary, root / tag)
        write_text_atomically(root / "latest", tag)
        finished = sorted((d for d in root.iterdir() if d.is_dir() and not d.name.startswith(".")), key=_step_of)
        for old in finished[:-keep]:
            shutil.rmtree(old)
    _barrier()


def load_lora_checkpoint(engine: Any, folder: str) -> dict[str, Any]:
    """Resume from the latest checkpoint of `folder`; returns its client states. Collective.

    Raises:
        GateError: there is none, it was trained on another base or as another LoRA, or what DeepSpeed loaded is not what
            was saved.
    """
    latest = Path(folder, "latest")
    if not latest.is_file():
        raise GateError("checkpoint", f"{folder} holds no checkpoint to resume from (no file `latest`)")
    tag = latest.read_text().strip()
    adapter = Path(folder, tag, "adapter")
    check_settings(engine.module, adapter)
    path, states = engine.load_checkpoint(folder, tag, load_module_strict=False)
    if path is None:
        raise GateError("checkpoint", f"DeepSpeed could not read {folder}/{tag}")
    check_loaded(engine.module, adapter)
    set_random_states(states["random_states"])
    return states


def check_settings(model: PeftModel, adapter: Path) -> None:
    """Raises GateError unless the policy has the base and the kind of LoRA that a saved adapter was trained with.

    Equal matrices do not tell: they are another policy at another alpha, or on another base of the same shape.
    """
    here, saved = model.peft_config["default"], json.loads((adapter / "adapter_config.json").read_text())
    different = [
        f"{name} is {saved[name]} there, {getattr(here, name)} here"
        for name in ("r", "lora_alpha", "target_modules")
        if _sorted(saved[name]) != _sorted(getattr(here, name))
    ]
    if different:
        raise GateError("checkpoint", f"{adapter} is another kind of LoRA: {'; '.join(different)}")
    try:
        check_base(adapter, Path(here.base_model_name_or_path))
    except CheckpointError as error:
        raise GateError("checkpoint", str(error)) from error


def _sorted(value: Any) -> Any:
    """PEFT keeps module names as a set, JSON as a list."""
    return sorted(value) if isinstance(value, list | set) else value


def check_loaded(model: PeftModel, adapter: Path) -> None:
    """Raises GateError unless every LoRA matrix of the policy is, bit for bit, the saved one. Collective.

    DeepSpeed must load without strictness when frozen weights are left out, and then skips what it does not find.
    """
    saved = {split_peft_name(name): tensor for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    parameters = lora_parameters(model)
    if saved.keys() != parameters.keys():
        names = ", ".join(f"lora_{matrix} of {module}" for module, matrix in sorted(saved.keys() ^ parameters.keys())[:3])
        raise GateError("checkpoint", f"{adapter} and this model differ in LoRA matrices: {names}")
    partitioned = any(hasattr(p, "ds_id") for p in parameters.values())
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=partitioned):
        wrong = [key for key, p in parameters.items() if not _same_bits(p.detach().cpu(), saved[key])]
    if wrong:
        module, matrix = wrong[0]
        raise GateError(
            "checkpoint",
            f"DeepSpeed loaded {len(wrong)} of {len(saved)} LoRA matrices other than {adapter} has them, first lora_{matrix} "
            f"of {module}: the checkpoint is a mixture. Resume from an older one (write its name into the file `latest`).",
        )


def _same_bits(loaded: torch.Tensor, saved: torch.Tensor) -> bool:
    return loaded.dtype == saved.dtype and torch.equal(loaded, saved)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("global_step"))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
