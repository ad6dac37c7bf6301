"""Prompt files and their manifests: written whole or not at all."""

import gzip
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gptoss_rl.prompts import problem_id
from gptoss_rl.versions import installed_versions

PACKAGES = ("polars", "pyarrow", "datasketch", "tokenizers")
# What a file is for; gptoss_rl.data.verify says whose rows may stand in whose.
ROLES = ("pool", "train", "evaluation", "in_distribution", "math45", "math45_eval", "report")
README = "README.md"
DEFERRED = (signal.SIGINT, signal.SIGTERM)


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


def iter_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file, plain or gzipped, one at a time.

    Raises:
        DataError: it is missing, cut off, or a line is no JSON object.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing")
    opened: Callable = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rb") as lines:  # bytes, so that a wrong one is reported with its line and not with its block
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line.decode("utf-8"))
                    if not isinstance(row, dict):
                        raise DataError(f"{path}, line {number}: no JSON object")
                    yield row
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}, line {number}: cut off or damaged ({error}); fetch it again") from error
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}, after line {number}: cut off or damaged ({error}); fetch it again") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSONL file.

    Raises:
        DataError: as `iter_lines`, or it is empty.
    """
    rows = list(iter_lines(path))
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def write_all(
    outputs: dict[Path, Iterable[dict[str, Any]]],
    meta: dict[str, Any],
    each: dict[str, dict[str, Any]] | None = None,
    describe: Callable[[Path, dict[str, dict[str, Any]]], str] | None = None,
) -> None:
    """Write several JSONL files, each with a manifest beside it: first all under temporary names, then all renamed.

    Args:
        meta: arguments, revisions, inputs, counts, seed; what is the same for all files. Commit, versions, number of rows, the
            file's sha256 and the names of all these files are added.
        each: file name -> what its manifest says besides.
        describe: the text of a folder's README.md from the folder and its new manifests by file name; written with the rest.

    Raises:
        DataError: a directory has the name of a file.
        OSError: e.g. the disk is full; nothing that was there before has changed.
        InterruptedLate: Ctrl-C while the finished files were renamed; all are new.
    """
    temporary: dict[Path, Path] = {}
    manifests: dict[Path, dict[str, dict[str, Any]]] = {}
    together = {"made_with": sorted(path.name for path in outputs)}
    stamp = {"commit": commit(), "versions": {"python": platform.python_version(), **installed_versions(PACKAGES)}}

    def name(target: Path) -> Path:
        if target.is_dir():
            raise DataError(f"{target} is a directory; move it away")
        temporary[target] = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        return temporary[target]

    try:
        for path, rows in outputs.items():
            made, beside = name(path), name(manifest_path(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            count = _write_durably(made, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            own = (each or {}).get(path.name, {})
            manifest = {**meta, **own, "file": path.name, "rows": count, "sha256": sha256(made), **together, **stamp}
            _write_durably(beside, [json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"])
            manifests.setdefault(path.parent, {})[path.name] = manifest
        for folder, new in manifests.items() if describe else ():
            _write_durably(name(folder / README), [describe(folder, new)])
        _rename_all(temporary)
    finally:  # also after Ctrl-C
        for made in temporary.values():
            made.unlink(missing_ok=True)


class InterruptedLate(KeyboardInterrupt):
    """Ctrl-C that came when the files were finished: they were all put in place first."""


def fate(stop: KeyboardInterrupt) -> str:
    """What an interrupted command says of its outputs."""
    return "the outputs are new and whole" if isinstance(stop, InterruptedLate) else "earlier outputs are untouched"


def _rename_all(temporary: dict[Path, Path]) -> None:
    """Rename the finished files. Signals wait these microseconds: between two renames a file would contradict its manifest.

    They are noted by a handler and not blocked: a mask is a thread's own, and any other thread of the process takes the signal.

    Raises:
        InterruptedLate: Ctrl-C came meanwhile.
    """
    late: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, lambda n, _: late.append(n)) for number in DEFERRED} if main else {}
    try:
        for path, made in temporary.items():
            os.replace(made, path)
        for folder in {path.parent for path in temporary}:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in late:
        raise InterruptedLate
    for number in late:
        signal.raise_signal(number)


def _write_durably(path: Path, lines: Iterable[str]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line)
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def check_writable(folder: Path) -> None:
    """Raises OSError when no file can be made in a folder, or the folder itself cannot; tells it before the work, not after."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryFile(dir=there):
        pass


def print_last(command: str, say: Callable[[], None]) -> None:
    """Print what a command did. Its files are complete by now: a full disk or a closed pipe behind stdout is one line."""
    try:
        say()
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's own flush fails once more
        sys.exit(f"{command}: the files are written, but the report could not be printed ({error})")
    except KeyboardInterrupt:
        sys.exit(f"{command}: interrupted; {fate(InterruptedLate())}")


def manifest_path(path: Path) -> Path:
    return path.with_suffix(".meta.json")


def commit() -> str | None:
    """The commit of the code that makes a file, with a mark when the working tree differs; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest beside a file.

    Raises:
        DataError: there is none, or it is none.
    """
    beside = manifest_path(path)
    if not beside.is_file():
        raise DataError(f"{path} has no manifest {beside.name}; make the file again")
    try:
        manifest = json.loads(beside.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{beside} is damaged ({error}); make the file again") from error
    if not isinstance(manifest, dict) or not {"sha256", "rows"} <= manifest.keys():
        raise DataError(f"{beside} lacks sha256 or rows; make the file again")
    return manifest


def manifest_faults(manifest: dict[str, Any]) -> list[str]:
    """What a manifest lacks or has in another shape; nothing when everything that is read of it can be."""
    wanted = {"file": str, "rows": int, "sha256": str, "role": str}
    also = {"rejected": dict, "inputs": dict, "revisions": dict, "contamination": dict, "duplicates": list, "made_with": list}
    faults = [
        f"manifest: {key} is {manifest.get(key)!r}" for key, kind in wanted.items() if not isinstance(manifest.get(key), kind)
    ]
    faults += [
        f"manifest: {key} is {manifest[key]!r}" for key, kind in also.items() if not isinstance(manifest.get(key, kind()), kind)
    ]
    if isinstance(manifest.get("role"), str) and manifest["role"] not in ROLES:
        faults.append(f"manifest: role {manifest['role']!r} is none of {', '.join(ROLES)}")
    return faults
