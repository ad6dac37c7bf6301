"""Merge a LoRA adapter into a BF16 checkpoint, on the CPU, tensor by tensor.

Makes a complete Hugging Face directory from a base directory and a PEFT adapter, with the base's own shards and index.
Each shard is copied as a stream of bytes in which only the adapted weights are replaced: everything else stays bit for
bit the base's, and memory holds the adapter and one weight, however large a shard is.

W + s B A (s = alpha / r, or alpha / sqrt(r) for rsLoRA) is computed in float32 and rounded once. A 16-bit weight cannot
hold all of a small update: the share of each delta that rounding swallowed is printed and kept in merge_meta.json. The
adapter itself, served through vLLM's LoRA slot, does not lose it.

    python merge_lora.py --base models/gpt-oss-20b-bf16 --adapter runs/NAME/adapter --output merged
"""

import argparse
import fnmatch
import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm

from gptoss_rl.lora_payload import split_peft_name
from gptoss_rl.run_files import write_json_atomically

INDEX, SINGLE, META = "model.safetensors.index.json", "model.safetensors", "merge_meta.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What belongs to a model besides its weights. A list of what to take, because notes about the base's own files (a
# manifest of checksums, a model card) would be wrong beside other weights.
COPIED = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.tiktoken", "*.model", "*.jinja", "chat_template*", "*.py", "LICENSE*", "NOTICE*", "USAGE_POLICY*",
)  # fmt: skip
# Fields of adapter_config.json under any value of which the adapted weight is W + s B A. A field that is not listed, and
# so any field of a later PEFT, must be empty.
HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
    "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "megatron_core", "qalora_group_size", "use_rslora", "init_lora_weights", "bias",
}  # fmt: skip
# The other ways to start an adapter (pissa, olora, corda, loftq) also change the base weights.
HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CHUNK = 16 << 20  # bytes read at once from what is only copied
SPARE_DISK = 64 << 20  # bytes beyond the files themselves
DEQUANTISE = (
    "dequantise it once (AutoModelForCausalLM.from_pretrained(BASE, quantization_config=Mxfp4Config(dequantize=True), "
    "dtype=torch.bfloat16).save_pretrained(NEW)) and merge into that directory"
)


class MergeError(RuntimeError):
    """The adapter cannot be merged into this base, or not to this place."""


@dataclass(frozen=True)
class Adapter:
    """An adapter, by the names of the base weights it changes."""

    pairs: dict[str, dict[str, torch.Tensor]]  # weight -> {"A": (r, in), "B": (out, r)}
    scaling: float
    rank: int


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in a shard."""

    name: str
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    size: int  # bytes


@dataclass(frozen=True)
class Shard:
    """A safetensors file without its data."""

    path: Path
    header: bytes  # everything before the data
    slots: tuple[Slot, ...]  # in the order of the data, without gaps

    @property
    def size(self) -> int:
        return len(self.header) + sum(slot.size for slot in self.slots)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MergeError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise MergeError(f"{path} holds no JSON object")
    return value


def read_scaling(path: Path) -> tuple[float, int]:
    """Scaling and rank of an adapter, from its adapter_config.json.

    Raises:
        MergeError: a field says that the adapted weight is not W + s B A with one s and one r; all such are named.
    """
    config = read_json(path)
    strange = [name for name, value in config.items() if value and name not in HARMLESS]
    if config.get("bias", "none") != "none":
        strange.append("bias")
    if config.get("init_lora_weights") not in HARMLESS_STARTS:
        strange.append("init_lora_weights")
    if config.get("peft_type") != "LORA":
        strange.append("peft_type")
    if strange:
        used = ", ".join(f"{name} = {config.get(name)!r:.60}" for name in sorted(strange))
        raise MergeError(f"{path} has {used}, which this merge does not know; merge with PEFT's merge_and_unload")
    rank, alpha = config["r"], config["lora_alpha"]
    return (alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank), rank


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT adapter directory whole; it is small.

    Raises:
        MergeError: files are missing or damaged, a setting or a tensor is not that of a plain LoRA, a module lacks A or
            B, shapes contradict the rank, or a value is not finite.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise MergeError(f"{folder} is no PEFT adapter in safetensors form: it has no {name}")
    scaling, rank = read_scaling(folder / ADAPTER_CONFIG)
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise MergeError(f"{folder / ADAPTER_WEIGHTS} is damaged: {error}") from error
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        try:
            module, matrix = split_peft_name(name)
        except ValueError as error:
            raise MergeError(f"{folder}: {error}, and this merge knows no other tensors") from error
        if pairs.setdefault(f"{module}.weight", {}).setdefault(matrix, tensor) is not tensor:
            raise MergeError(f"{folder}: {name} is there under two names")
        if tensor.ndim != 2 or tensor.shape[0 if matrix == "A" else 1] != rank:
            raise MergeError(f"{folder}: {name} has shape {tuple(tensor.shape)}, which is not of rank {rank}")
        if not torch.isfinite(tensor).all():
            raise MergeError(f"{folder}: {name} holds values that are not finite")
    incomplete = sorted(name for name, pair in pairs.items() if len(pair) != 2)
    if incomplete or not pairs:
        raise MergeError(f"{folder}: {incomplete[0] if incomplete else 'no module'} has not both lora_A and lora_B")
    return Adapter(pairs, scaling, rank)


def read_shard(path: Path) -> Shard:
    """Header of a safetensors file (format: huggingface/safetensors, "Format" in its README).

    Raises:
        MergeError: the file is missing, cut off or not what its header says.
    """
    if not path.is_file():
        raise MergeError(f"{path} is missing; the base directory is incomplete")
    with path.open("rb") as file:
        length = file.read(8)
        text = file.read(min(struct.unpack("<Q", length)[0], path.stat().st_size)) if len(length) == 8 else b""
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        ordered = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
        starts_ends = [tuple(entry["data_offsets"]) for _, entry in ordered]
        slots = [Slot(n, e["dtype"], tuple(e["shape"]), e["data_offsets"][1] - e["data_offsets"][0]) for n, e in ordered]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeError(f"{path} is no safetensors file, or its header is damaged") from error
    shard = Shard(path, length + text, tuple(slots))
    gapless = [start for start, _ in starts_ends] == [0, *(end for _, end in starts_ends)][: len(starts_ends)]
    if not gapless or shard.size != path.stat().st_size:
        raise MergeError(f"{path} is {path.stat().st_size} bytes, its header describes {shard.size}: it is damaged")
    return shard


def read_base(folder: Path) -> list[Shard]:
    """The shards of a checkpoint.

    Raises:
        MergeError: it is none, it is quantised, a shard is missing or damaged, or index and shards disagree.
    """
    if not (folder / "config.json").is_file():
        raise MergeError(f"{folder} is no checkpoint: it has no config.json")
    quantised = read_json(folder / "config.json").get("quantization_config")
    if quantised:
        raise MergeError(f"{folder} is quantised ({quantised.get('quant_method', 'unknown method')}); {DEQUANTISE}")
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise MergeError(f"{folder} holds neither {INDEX} nor {SINGLE}; only safetensors checkpoints can be merged into")
        return [read_shard(folder / SINGLE)]
    weight_map = read_json(folder / INDEX).get("weight_map", {})
    shards = [read_shard(folder / name) for name in sorted(set(weight_map.values()))]
    found = [(slot.name, shard.path.name) for shard in shards for slot in shard.slots]
    if sorted(found) != sorted(weight_map.items()):
        wrong = sorted(set(found) ^ set(weight_map.items()))[:1]
        raise MergeError(f"{folder / INDEX} and the shards disagree, first on {wrong[0] if wrong else 'a repeated tensor'}")
    return shards


def check_fit(adapter: Adapter, shards: list[Shard], base: Path) -> None:
    """
    Raises:
        MergeError: an adapted weight is not in the base, or has another shape or a dtype that cannot be added to.
    """
    slots = {slot.name: slot for shard in shards for slot in shard.slots}
    unknown = sorted(set(adapter.pairs) - set(slots))
    if unknown:
        raise MergeError(
            f"{len(unknown)} of {len(adapter.pairs)} adapted weights are not in {base}, first {unknown[0]}: the adapter "
            "was trained on another model"
        )
    for name, pair in adapter.pairs.items():
        slot, shape = slots[name], (pair["B"].shape[0], pair["A"].shape[1])
        if slot.shape != shape:
            raise MergeError(f"{name} has shape {slot.shape} in {base} and {shape} in the adapter: another model's adapter")
        if slot.dtype not in DTYPES:
            raise MergeError(f"{name} is stored as {slot.dtype} in {base}, merging takes {', '.join(DTYPES)}; {DEQUANTISE}")


def merge_weight(weight: torch.Tensor, pair: dict[str, torch.Tensor], scaling: float) -> tuple[torch.Tensor, dict[str, float]]:
    """W + s B A in W's dtype.

    Args:
        weight: (out, in).

    Returns:
        The merged weight, and of the delta: delta_squared (squared norm), lost_squared (squared norm of what rounding
        took of it), unchanged (entries that are what they were) and entries.
    """
    delta = (pair["B"].float() @ pair["A"].float()) * scaling
    merged = (weight.float() + delta).to(weight.dtype)
    lost = merged.float().sub_(weight).sub_(delta)
    return merged, {
        "delta_squared": delta.pow_(2).sum(dtype=torch.float64).item(),
        "lost_squared": lost.pow_(2).sum(dtype=torch.float64).item(),
        "unchanged": float((merged == weight).sum()),
        "entries": float(weight.numel()),
    }


def rounding_of(parts: list[dict[str, float]]) -> dict[str, float]:
    """What rounding did to the deltas of some weights together.

    Returns:
        rms_delta, lost_share (norm of what was lost over norm of the delta; 0 for no delta) and unchanged_share.
    """
    delta, lost, unchanged, entries = (sum(part[key] for part in parts) for key in parts[0])
    return {
        "rms_delta": math.sqrt(delta / entries),
        "lost_share": math.sqrt(lost / delta) if delta else 0.0,
        "unchanged_share": unchanged / entries,
    }


def write_shard(shard: Shard, target: Path, adapter: Adapter, advance: Callable[[int], Any]) -> dict[str, Any]:
    """Copy a shard and merge on the way.

    Returns:
        base_sha256 and sha256 of the two files, and merged: weight -> see `merge_weight`.

    Raises:
        MergeError: a merged weight is not finite.
    """
    read_hash, written_hash = hashlib.sha256(), hashlib.sha256()
    merged: dict[str, dict[str, float]] = {}
    with shard.path.open("rb") as source, target.open("wb") as file:

        def read(size: int) -> bytearray:
            data = bytearray(size)
            if source.readinto(data) != size:
                raise MergeError(f"{shard.path} became shorter while it was read")
            read_hash.update(data)
            return data

        def write(data: Any) -> None:
            written_hash.update(data)
            file.write(data)
            advance(len(data))

        write(read(len(shard.header)))
        for slot in shard.slots:
            if slot.name not in adapter.pairs:
                for start in range(0, slot.size, CHUNK):
                    write(read(min(CHUNK, slot.size - start)))
                continue
            weight = torch.frombuffer(read(slot.size), dtype=DTYPES[slot.dtype]).reshape(slot.shape)
            weight, merged[slot.name] = merge_weight(weight, adapter.pairs[slot.name], adapter.scaling)
            if not torch.isfinite(weight).all():
                raise MergeError(f"{slot.name} is not finite after merging: the base is not, or {slot.dtype} overflows")
            write(weight.reshape(-1).view(torch.uint8).numpy())
        file.flush()
        os.fsync(file.fileno())
    return {"base_sha256": read_hash.hexdigest(), "sha256": written_hash.hexdigest(), "merged": merged}


def companions(base: Path, shards: list[Shard]) -> tuple[list[Path], list[str]]:
    """Files of the base that go with the merged weights, and names of what stays behind."""
    weights = {shard.path.name for shard in shards}
    others = sorted(path for path in base.iterdir() if path.name not in weights)
    taken = [p for p in others if p.is_file() and (p.name == INDEX or any(fnmatch.fnmatch(p.name, c) for c in COPIED))]
    return taken, [path.name for path in others if path not in taken]


def check_place(output: Path, base: Path, adapter: Path, needed: int, overwrite: bool) -> None:
    """
    Raises:
        MergeError: the output exists (and is not to be, or must not be, replaced), would swallow an input, or does not
            fit on its disk.
    """
    for source in (base.resolve(), adapter.resolve()):
        if output.resolve() == source or output.resolve() in source.parents or source in output.resolve().parents:
            raise MergeError(f"{output} and {source} are not apart; choose another --output")
    if output.exists() and not overwrite:
        raise MergeError(f"{output} exists; pass --overwrite to replace it, or choose another --output")
    if output.exists() and not (output / META).is_file():
        raise MergeError(f"{output} was not made by this script (it has no {META}) and is not replaced; remove it yourself")
    place = next(path for path in (output.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed + SPARE_DISK:
        raise MergeError(
            f"{output} takes {needed / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free; make room or choose another --output"
        )


def git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("git") else None
    return done.stdout.strip() if done and done.returncode == 0 else None


def describe(adapter: Adapter, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What merge_meta.json says about the weights; `results` holds what `write_shard` returned, by file name.

    Raises:
        MergeError: a matrix of the adapter was not used exactly once.
    """
    weights = [(name, part) for result in results.values() for name, part in result["merged"].items()]
    if sorted(name for name, _ in weights) != sorted(adapter.pairs):
        raise MergeError("not every adapted weight was merged exactly once; this is a defect of merge_lora.py")
    parts = dict(sorted(weights))
    projections: dict[str, list[dict[str, float]]] = {}
    for name, part in parts.items():
        projections.setdefault(name.split(".")[-2], []).append(part)
    all_bases = "".join(f"{result['base_sha256']}  {name}\n" for name, result in sorted(results.items()))
    return {
        "rank": adapter.rank,
        "scaling": adapter.scaling,
        "merged_weights": len(parts),
        "merged_entries": int(sum(part["entries"] for part in parts.values())),
        "rounding": rounding_of(list(parts.values())),
        "rounding_by_projection": {name: rounding_of(group) for name, group in projections.items()},
        "rounding_by_weight": {name: rounding_of([part]) for name, part in parts.items()},
        # Of the lines that `sha256sum` prints for the base's shards, in order of their names.
        "base_sha256": hashlib.sha256(all_bases.encode()).hexdigest(),
        "base_shards": {name: result["base_sha256"] for name, result in results.items()},
        "shards": {name: result["sha256"] for name, result in results.items()},
    }


def merge(base: Path, adapter: Path, output: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write `output`, which appears in one rename when everything in it is written.

    Returns:
        What merge_meta.json holds.

    Raises:
        MergeError: adapter and base do not fit together, or the output cannot be there; nothing is written then.
    """
    loaded, shards = read_adapter(adapter), read_base(base)
    check_fit(loaded, shards, base)
    files, left_behind = companions(base, shards)
    needed = sum(shard.size for shard in shards) + sum(path.stat().st_size for path in files)
    check_place(output, base, adapter, needed, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        results = {}
        with tqdm(total=needed, unit="B", unit_scale=True, desc="merging", mininterval=1) as bar:
            for shard in shards:
                results[shard.path.name] = write_shard(shard, partial / shard.path.name, loaded, bar.update)
            for path in files:
                shutil.copyfile(path, partial / path.name)
                bar.update(path.stat().st_size)
        meta = {
            "arguments": {"base": str(base), "adapter": str(adapter), "output": str(output)},
            "commit": git_commit(),
            "torch": torch.__version__,
            "adapter_sha256": hashlib.sha256((adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest(),
            "adapter_config_sha256": hashlib.sha256((adapter / ADAPTER_CONFIG).read_bytes()).hexdigest(),
            "copied": [path.name for path in files],
            "left_behind": left_behind,
            **describe(loaded, results),
        }
        write_json_atomically(partial / META, meta)
        swap_in(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return meta


def swap_in(partial: Path, output: Path) -> None:
    """Put `partial` in the place of `output`. Killed in between, the old output is still there under its `.old` name."""
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    if output.exists():
        output.replace(old)
    partial.replace(output)
    shutil.rmtree(old, ignore_errors=True)


def report(meta: dict[str, Any]) -> str:
    """The closing table."""
    lines = [f"{'projection':12s} {'rms of delta':>12s} {'lost to rounding':>16s} {'weights unchanged':>17s}"]
    for name, rounding in [*meta["rounding_by_projection"].items(), ("all", meta["rounding"])]:
        shares = f"{rounding['lost_share']:>16.1%} {rounding['unchanged_share']:>17.1%}"
        lines.append(f"{name:12s} {rounding['rms_delta']:>12.2e} {shares}")
    if meta["left_behind"]:
        lines.append(f"not copied: {', '.join(meta['left_behind'])}")
    counts = f"{meta['merged_weights']} weights merged into {len(meta['shards'])} shard(s)"
    lines.append(f"{meta['arguments']['output']}: {counts}, scaling {meta['scaling']:g}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="BF16 Hugging Face directory")
    parser.add_argument("--adapter", type=Path, required=True, help="PEFT adapter directory, e.g. runs/NAME/adapter")
    parser.add_argument("--output", type=Path, required=True, help="directory to make; must not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output of this script")
    args = parser.parse_args()
    leftovers = sorted(args.output.parent.glob(f".{args.output.name}.*.partial"))
    if leftovers:
        print(f"merge_lora: left over from an interrupted merge, remove it: {leftovers[0]}", file=sys.stderr)
    try:
        meta = merge(args.base, args.adapter, args.output, overwrite=args.overwrite)
    except (MergeError, OSError) as error:
        sys.exit(f"merge_lora: {error}")
    print(report(meta))


if __name__ == "__main__":
    main()
