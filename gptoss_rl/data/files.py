"""Prompt files and their manifests: written whole or not at all, and checked again from what the manifest says."""

import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gptoss_rl.prompts import problem_id

REQUIRED = ("id", "input", "label", "source")
PACKAGES = ("polars", "pyarrow", "datasketch", "tokenizers")


class DataError(RuntimeError):
    """An input that cannot be used, or an output that is not what its manifest says."""


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def selection_key(seed: int, text: str) -> str:
    """A pseudo-random order that depends on seed and text alone: sorting by it shuffles alike on every machine."""
    return hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()


def prompt_row(problem: str, label: str, source: str, **more: Any) -> dict[str, Any]:
    """One line of a prompt file."""
    return {"id": problem_id(problem), "input": problem, "label": label, "source": source, **more}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file, plain or gzipped.

    Raises:
        DataError: it is missing, empty, cut off, or a line is no JSON object.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing")
    opened: Callable = gzip.open if path.suffix == ".gz" else open
    rows = []
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}, line {number}: no JSON object")
                    rows.append(row)
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}, after {len(rows)} rows: cut off or damaged ({error}); fetch it again") from error
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def write_all(outputs: dict[Path, Iterable[dict[str, Any]]], meta: dict[str, Any]) -> None:
    """Write several JSONL files, each with a manifest beside it: first all under temporary names, then all renamed.

    Args:
        meta: arguments, revisions, inputs, counts, seed; what is the same for all files. Versions, number of rows and the
            file's sha256 are added.

    Raises:
        OSError: e.g. the disk is full; nothing that was there before has changed.
    """
    temporary: dict[Path, Path] = {}
    try:
        for path, rows in outputs.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            count = _write_durably(temporary[path], (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            manifest = {**meta, "file": path.name, "rows": count, "sha256": sha256(temporary[path]), "versions": versions()}
            beside = manifest_path(path)
            temporary[beside] = beside.with_name(f".{beside.name}.{os.getpid()}.tmp")
            _write_durably(temporary[beside], [json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"])
        for path, made in temporary.items():
            os.replace(made, path)
    finally:  # also after Ctrl-C
        for made in temporary.values():
            made.unlink(missing_ok=True)


def _write_durably(path: Path, lines: Iterable[str]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line)
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def manifest_path(path: Path) -> Path:
    return path.with_suffix(".meta.json")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def verify_file(path: Path) -> list[str]:
    """What is wrong with a prompt file; nothing when it is what its manifest says."""
    from reward_func_em import parse_label

    manifest = manifest_path(path)
    if not manifest.is_file():
        return [f"{path} has no manifest {manifest.name}"]
    said = json.loads(manifest.read_text())
    problems = [] if sha256(path) == said["sha256"] else [f"{path} is not the file its manifest describes (sha256)"]
    try:
        rows = read_lines(path)
    except DataError as error:
        return [*problems, str(error)]
    if len(rows) != said["rows"]:
        problems.append(f"{path} has {len(rows)} rows, its manifest says {said['rows']}")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        lacking = [key for key in REQUIRED if key not in row]
        if lacking:
            problems.append(f"{path}, row {number}: no {', '.join(lacking)}")
            continue
        if row["id"] != problem_id(row["input"]):
            problems.append(f"{path}, row {number}: id {row['id']} is not its problem's")
        if row["id"] in seen:
            problems.append(f"{path}, row {number}: {row['id']} stands there twice")
        seen.add(row["id"])
        try:
            if said.get("integer_labels", True):
                parse_label(row["label"])
        except ValueError as error:
            problems.append(f"{path}, row {number}: {error}")
    return problems


def overlap(train: Path, evaluation: Path) -> list[str]:
    """Problems of `train` that stand in `evaluation`, exactly, in part or nearly."""
    from gptoss_rl.data.contamination import Problem, find_matches

    def problems(path: Path) -> list[Problem]:
        return [Problem(row["id"], row["input"], path.name) for row in read_lines(path)]

    matches = find_matches(problems(train), problems(evaluation))
    return [f"{train.name} {m.pool_id} stands in {m.other_set} as {m.other_id} ({m.kind}, {m.similarity:.2f})" for m in matches]
