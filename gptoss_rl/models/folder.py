"""Model directories: read one tensor at a time, told apart, and made one from another."""

import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# What belongs to a model besides its weights. A list of what to take, because notes about the base's own files (a
# manifest of checksums, a model card) would be wrong beside other weights.
COPIED = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.tiktoken", "*.model", "*.jinja", "chat_template*", "*.py", "LICENSE*", "NOTICE*", "USAGE_POLICY*",
)  # fmt: skip
# Tensors of a few KB that MXFP4 and BF16 forms of a model both store as they are, and that training a model changes.
DISTINCTIVE = ("norm.weight", "self_attn.sinks", "self_attn.q_proj.bias", "router.bias")
# Larger ones that both store in BF16, which merging an adapter or training further changes: a few rows of each are enough.
SAMPLED = (*(f"self_attn.{name}_proj.weight" for name in "qkvo"), "embed_tokens.weight")
SAMPLED_ROWS = 16
FINGERPRINT_FORM = "2"  # of `base_fingerprint`; the first form had none
WHOLE = 64 << 20  # bytes up to which `weights_digest` reads a file whole
SPARE_DISK = 64 << 20  # bytes beyond the files themselves


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, does not fit, or cannot be put where it should go."""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        CheckpointError: it is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


class Weights:
    """The tensors of a checkpoint by name, read one at a time."""

    def __init__(self, folder: Path):
        """
        Raises:
            CheckpointError: it is no checkpoint.
        """
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} is no model directory: it has no config.json")
        self.folder = folder
        self.config = read_object(folder / "config.json")

    @cached_property
    def files(self) -> dict[str, str]:
        """Tensor name -> file, from the index, or from the one file there is.

        Raises:
            CheckpointError: a file is missing, or the one file is damaged.
        """
        index = self.folder / INDEX
        if not index.is_file():
            return dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        found = read_object(index).get("weight_map", {})
        lacking = [name for name in sorted(set(found.values())) if not (self.folder / name).is_file()]
        if lacking:
            raise CheckpointError(f"{self.folder} lacks {lacking[0]} ({len(lacking)} of its shards); download it again")
        held = {(name, shard) for shard in set(found.values()) for name in self._open(shard).keys()}  # noqa: SIM118  (no dict)
        if held != set(found.items()):
            wrong = min(held ^ set(found.items()))
            raise CheckpointError(f"{index} and the shards disagree, first on {wrong[0]} in {wrong[1]}; download it again")
        return found

    def _open(self, name: str) -> Any:
        try:
            return safe_open(self.folder / name, framework="pt")
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.folder} lacks {name}; download it again") from error
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / name} is damaged ({error}); download it again") from error

    def read(self, name: str, rows: int | None = None) -> torch.Tensor:
        """A tensor, or its first rows alone."""
        if name not in self.files:
            raise CheckpointError(f"{self.folder} has no tensor {name}")
        try:
            file = self._open(self.files[name])
            return file.get_tensor(name) if rows is None else file.get_slice(name)[:rows]
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / self.files[name]} has no {name}; its index says so") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found = {}
        for shard in sorted(set(self.files.values())):
            file = self._open(shard)
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (no dict)
        return found

    def distinctive(self) -> list[str]:
        """Names of the small tensors by which one base is told from another."""
        return sorted(name for name in self.files if name.endswith(DISTINCTIVE))


def base_fingerprint(folder: Path, *, small_only: bool = False) -> str:
    """16 hex digits behind the form's number, equal for the MXFP4 and the BF16 form of one model, and different for others.

    It covers norms, sinks, biases, and the first rows of embeddings and attention projections; so also a base that an adapter
    was merged into is another one. A model of which only experts differ is not told apart.

    Args:
        small_only: the first form, without rows of larger tensors, as adapters of earlier runs carry it.

    Raises:
        CheckpointError: the folder is no whole checkpoint.
    """
    weights, digest = Weights(folder), hashlib.sha256()
    sampled = () if small_only else sorted(name for name in weights.files if name.endswith(SAMPLED))
    parts = [*((name, None) for name in weights.distinctive()), *((name, SAMPLED_ROWS) for name in sampled)]
    for name, rows in parts:
        digest.update(name.encode())
        digest.update(weights.read(name, rows).to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    short = digest.hexdigest()[:16]
    return short if small_only else f"{FINGERPRINT_FORM}-{short}"


def file_digest(path: Path) -> str:
    """16 hex digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def weights_digest(folder: Path) -> str:
    """16 hex digits by which another model in the same place is noticed, without reading 42 GB.

    Files up to 64 MiB count with all their bytes; larger ones with size, time of the last change to the nanosecond, and
    header. So a large file that was rewritten in place with its old time set back passes for the old one, and one that was
    copied, for a new one.

    Raises:
        CheckpointError: the folder is no whole checkpoint.
    """
    digest = hashlib.sha256()
    for name in sorted(set(Weights(folder).files.values())):
        path = folder / name
        state = path.stat()
        digest.update(f"{name} {state.st_size}\n".encode())
        if state.st_size <= WHOLE:
            digest.update(path.read_bytes())
            continue
        with path.open("rb") as file:
            length = file.read(8)
            digest.update(f"{state.st_mtime_ns}\n".encode() + length + file.read(int.from_bytes(length, "little")))
    return digest.hexdigest()[:16]


def companions(base: Path, weights: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Files of `base` that go with new weights, and names of what stays behind.

    Args:
        weights: its own weight files; their index is neither.
    """
    own = {*weights, INDEX}
    others = sorted(path for path in base.iterdir() if path.name not in own)
    taken = [p for p in others if p.is_file() and any(fnmatch.fnmatch(p.name, pattern) for pattern in COPIED)]
    return taken, [path.name for path in others if path not in taken]


def check_place(output: Path, sources: Iterable[Path], needed: int, *, overwrite: bool, mark: str) -> None:
    """See that `needed` bytes can be put at `output`; `mark` is the file by which the script knows its own outputs.

    Raises:
        CheckpointError: the output exists (and is not to be, or must not be, replaced), would swallow a source, or does not
            fit on its disk.
    """
    for source in (source.resolve() for source in sources):
        if output.resolve() == source or output.resolve() in source.parents or source in output.resolve().parents:
            raise CheckpointError(f"{output} and {source} are not apart; choose another output")
    if output.exists() and not overwrite:
        raise CheckpointError(f"{output} exists; pass --overwrite to replace it, or choose another output")
    if output.exists() and not (output / mark).is_file():
        raise CheckpointError(f"{output} was not made by this script (it has no {mark}) and is kept; remove it yourself")
    place = next(path for path in (output.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed + SPARE_DISK:
        raise CheckpointError(
            f"{output} takes {needed / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free; make room or choose another output"
        )


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `output` in one rename when the block ends well, and is gone otherwise."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        _swap_in(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap_in(partial: Path, output: Path) -> None:
    """Killed between the two renames, the old output is still there under its `.old` name."""
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    if output.exists():
        output.replace(old)
    partial.replace(output)
    shutil.rmtree(old, ignore_errors=True)


def leftovers(output: Path) -> list[Path]:
    """What earlier attempts at `output` left when they were killed: unfinished copies, and an old output set aside."""
    return sorted(path for kind in ("partial", "old") for path in output.parent.glob(f".{output.name}.*.{kind}"))
