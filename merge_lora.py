"""Merge a LoRA adapter into a BF16 checkpoint, on the CPU, shard by shard.

Makes a complete Hugging Face directory from a base directory and a PEFT adapter, with the base's own shards and index. One
shard is held in memory at a time, so 20B parameters merge in 5 GB. W + (alpha / r) B A is computed in float32 and
rounded once; bf16 cannot hold all of a small update, so the share that rounding swallowed is printed and kept in
merge_meta.json. An evaluation of the adapter itself (served through vLLM's LoRA slot) does not lose it.

    python merge_lora.py --base models/gpt-oss-20b-bf16 --adapter runs/NAME/adapter --output merged
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from gptoss_rl.checkpoints import write_folder_atomically
from gptoss_rl.lora_payload import split_peft_name
from gptoss_rl.run_files import write_json_atomically

INDEX = "model.safetensors.index.json"
# Settings of PEFT under which W + (alpha / r) B A is not what the adapter computes.
UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")


class MergeError(RuntimeError):
    """The adapter cannot be merged into this base."""


def read_adapter(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], float]:
    """Weight name in the base -> {"A": (r, in), "B": (out, r)}, and the scaling alpha / r.

    Raises:
        MergeError: files are missing, a setting is not supported, or a module lacks A or B.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise MergeError(f"{folder} is no PEFT adapter: it has no {name}")
    config = json.loads((folder / "adapter_config.json").read_text())
    used = [name for name in UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise MergeError(f"{folder} uses {', '.join(used)}, which this merge does not support; merge it with PEFT")
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        try:
            module, matrix = split_peft_name(name)
        except ValueError as error:
            raise MergeError(f"{folder}: {error}") from error
        matrices.setdefault(f"{module}.weight", {})[matrix] = tensor
    incomplete = [name for name, pair in matrices.items() if set(pair) != {"A", "B"}]
    if incomplete or not matrices:
        raise MergeError(f"{folder}: {incomplete[0] if incomplete else 'no module'} has not both A and B")
    return matrices, config["lora_alpha"] / config["r"]


def read_shards(folder: Path) -> dict[str, str]:
    """Weight name -> file of the base directory.

    Raises:
        MergeError: no weights, or weights that are still quantised.
    """
    if not (folder / "config.json").is_file():
        raise MergeError(f"{folder} is no checkpoint: it has no config.json")
    if json.loads((folder / "config.json").read_text()).get("quantization_config"):
        raise MergeError(f"{folder} is quantised (MXFP4); merge into its BF16 dequantisation instead")
    if (folder / INDEX).is_file():
        return json.loads((folder / INDEX).read_text())["weight_map"]
    single = folder / "model.safetensors"
    if not single.is_file():
        raise MergeError(f"{folder} holds neither {INDEX} nor model.safetensors")
    with safe_open(single, framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), single.name)


def merge_weight(weight: torch.Tensor, pair: dict[str, torch.Tensor], scaling: float) -> tuple[torch.Tensor, float, float]:
    """Merged weight, squared norm of the exact delta, squared norm of what rounding lost of it.

    Raises:
        MergeError: the shapes do not fit.
    """
    a, b = pair["A"].float(), pair["B"].float()
    if weight.shape != (b.shape[0], a.shape[1]):
        raise MergeError(f"the delta has shape {(b.shape[0], a.shape[1])}, the weight {tuple(weight.shape)}")
    delta = scaling * (b @ a)
    merged = (weight.float() + delta).to(weight.dtype)
    lost = merged.float() - weight.float() - delta
    return merged, delta.pow(2).sum().item(), lost.pow(2).sum().item()


def merge(base: Path, adapter: Path, output: Path) -> dict[str, Any]:
    """Write `output`; returns what merge_meta.json holds.

    Raises:
        MergeError: adapter and base do not fit together, or the disk is too full; nothing is written then.
    """
    matrices, scaling = read_adapter(adapter)
    shards = read_shards(base)
    unknown = sorted(set(matrices) - set(shards))
    if unknown:
        raise MergeError(f"{len(unknown)} adapted weights are not in {base}, e.g. {unknown[0]}")
    needed = sum(path.stat().st_size for path in base.iterdir() if path.is_file())
    output.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(output.parent).free < needed:
        raise MergeError(
            f"{needed / 1e9:.1f} GB are needed beside {output}, {shutil.disk_usage(output.parent).free / 1e9:.1f} are free"
        )
    meta: dict[str, Any] = {
        "base": str(base),
        "adapter": str(adapter),
        "adapter_sha256": hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "scaling": scaling,
        "merged_weights": len(matrices),
    }

    def write(folder: Path) -> None:
        exact, lost = 0.0, 0.0
        for name in tqdm(sorted(set(shards.values())), desc="shards", unit="shard"):
            with safe_open(base / name, framework="pt") as source:
                metadata = source.metadata()
                tensors = {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118
            for key in set(tensors) & set(matrices):
                try:
                    tensors[key], exact_part, lost_part = merge_weight(tensors[key], matrices[key], scaling)
                except MergeError as error:
                    raise MergeError(f"{key}: {error}") from error
                exact, lost = exact + exact_part, lost + lost_part
            save_file(tensors, folder / name, metadata=metadata)
        for path in base.iterdir():
            if path.is_file() and path.suffix != ".safetensors":
                shutil.copy2(path, folder / path.name)
        meta["lost_share"] = (lost / exact) ** 0.5 if exact else 0.0
        write_json_atomically(folder / "merge_meta.json", meta)

    write_folder_atomically(output, write)
    return meta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="BF16 Hugging Face directory")
    parser.add_argument("--adapter", type=Path, required=True, help="PEFT adapter directory, e.g. runs/NAME/adapter")
    parser.add_argument("--output", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output directory")
    args = parser.parse_args()
    try:
        if args.output.exists() and not args.overwrite:
            raise MergeError(f"{args.output} exists; pass --overwrite to replace it")
        meta = merge(args.base, args.adapter, args.output)
    except MergeError as error:
        sys.exit(f"merge_lora: {error}")
    print(f"{args.output}: {meta['merged_weights']} weights merged, {meta['lost_share']:.1%} of the update lost to rounding")


if __name__ == "__main__":
    main()
