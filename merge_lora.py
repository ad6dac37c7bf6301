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
from tqdm import tqdm

from gptoss_rl.models.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, check_base, check_shapes, read_adapter
from gptoss_rl.models.folder import (
    INDEX,
    SINGLE,
    CheckpointError,
    check_place,
    companions,
    leftovers,
    new_folder,
    read_object,
)
from gptoss_rl.run_files import write_json_atomically

META = "merge_meta.json"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CHUNK = 16 << 20  # bytes read at once from what is only copied
DEQUANTIZE = "dequantize it once (python dequantize_mxfp4.py BASE NEW) and merge into that directory"


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


def read_shard(path: Path) -> Shard:
    """Header of a safetensors file (format: huggingface/safetensors, "Format" in its README).

    Raises:
        CheckpointError: the file is missing, cut off or not what its header says.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the base directory is incomplete")
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
        raise CheckpointError(f"{path} is no safetensors file, or its header is damaged") from error
    shard = Shard(path, length + text, tuple(slots))
    gapless = [start for start, _ in starts_ends] == [0, *(end for _, end in starts_ends)][: len(starts_ends)]
    if not gapless or shard.size != path.stat().st_size:
        raise CheckpointError(f"{path} is {path.stat().st_size} bytes, its header describes {shard.size}: it is damaged")
    return shard


def read_base(folder: Path) -> list[Shard]:
    """The shards of a checkpoint.

    Raises:
        CheckpointError: it is none, it is quantized, a shard is missing or damaged, or index and shards disagree.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no config.json")
    quantization = read_object(folder / "config.json").get("quantization_config")
    if quantization:
        raise CheckpointError(f"{folder} is quantized ({quantization.get('quant_method', 'unknown method')}); {DEQUANTIZE}")
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise CheckpointError(f"{folder} holds neither {INDEX} nor {SINGLE}; only safetensors can be merged into")
        return [read_shard(folder / SINGLE)]
    weight_map = read_object(folder / INDEX).get("weight_map", {})
    shards = [read_shard(folder / name) for name in sorted(set(weight_map.values()))]
    found = [(slot.name, shard.path.name) for shard in shards for slot in shard.slots]
    if sorted(found) != sorted(weight_map.items()):
        wrong = sorted(set(found) ^ set(weight_map.items()))[:1]
        raise CheckpointError(f"{folder / INDEX} and shards disagree, first on {wrong[0] if wrong else 'a repeated tensor'}")
    return shards


def check_fit(adapter: Adapter, shards: list[Shard], base: Path) -> None:
    """
    Raises:
        CheckpointError: an adapted weight is not in the base, or has another shape or a dtype that cannot be added to.
    """
    slots = {slot.name: slot for shard in shards for slot in shard.slots}
    check_shapes(adapter, {name: slot.shape for name, slot in slots.items()}, base)
    for name in adapter.pairs:
        if slots[name].dtype not in DTYPES:
            raise CheckpointError(f"{name} is {slots[name].dtype} in {base}, merging takes {', '.join(DTYPES)}; {DEQUANTIZE}")


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
        CheckpointError: a merged weight is not finite.
    """
    read_hash, written_hash = hashlib.sha256(), hashlib.sha256()
    merged: dict[str, dict[str, float]] = {}
    with shard.path.open("rb") as source, target.open("wb") as file:

        def read(size: int) -> bytearray:
            data = bytearray(size)
            if source.readinto(data) != size:
                raise CheckpointError(f"{shard.path} became shorter while it was read")
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
                raise CheckpointError(f"{slot.name} is not finite after merging: the base is not, or {slot.dtype} overflows")
            write(weight.reshape(-1).view(torch.uint8).numpy())
        file.flush()
        os.fsync(file.fileno())
    return {"base_sha256": read_hash.hexdigest(), "sha256": written_hash.hexdigest(), "merged": merged}


def git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("git") else None
    return done.stdout.strip() if done and done.returncode == 0 else None


def describe(adapter: Adapter, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What merge_meta.json says about the weights; `results` holds what `write_shard` returned, by file name.

    Raises:
        CheckpointError: a matrix of the adapter was not used exactly once.
    """
    weights = [(name, part) for result in results.values() for name, part in result["merged"].items()]
    if sorted(name for name, _ in weights) != sorted(adapter.pairs):
        raise CheckpointError("not every adapted weight was merged exactly once; this is a defect of merge_lora.py")
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
        CheckpointError: adapter and base do not fit together, or the output cannot be there; nothing is written then.
    """
    loaded, shards = read_adapter(adapter), read_base(base)
    check_fit(loaded, shards, base)
    unsure = check_base(adapter, base)
    if unsure:
        print(f"merge_lora: warning: {unsure}", file=sys.stderr)
    files, left_behind = companions(base, [shard.path.name for shard in shards])
    files += [path for path in [base / INDEX] if path.is_file()]  # the shards keep their names and sizes
    needed = sum(shard.size for shard in shards) + sum(path.stat().st_size for path in files)
    check_place(output, (base, adapter), needed, overwrite=overwrite, mark=META)
    with new_folder(output) as partial:
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
    return meta


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
    for path in leftovers(args.output):
        print(f"merge_lora: left over from an interrupted merge, remove it: {path}", file=sys.stderr)
    try:
        meta = merge(args.base, args.adapter, args.output, overwrite=args.overwrite)
    except (CheckpointError, OSError) as error:
        sys.exit(f"merge_lora: {error}")
    except KeyboardInterrupt:
        sys.exit("merge_lora: interrupted; nothing half-made was left behind")
    print(report(meta))


if __name__ == "__main__":
    main()
