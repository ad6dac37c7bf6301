"""The files of a run: append-only JSON lines, flushed a line at a time, readable after any crash."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends records to one file. A line is written in one call and flushed, so a crash tears the last line at most."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        needs_newline = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        self.file = path.open("a", encoding="utf-8")
        if needs_newline:  # a torn line of a crashed run must not swallow the first new one
            self.file.write("\n")

    def write(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(record, ensure_ascii=False, allow_nan=True) + "\n")
        self.file.flush()


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file in order; lines that a crash tore are passed over, a missing file is empty."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def drop_after_step(path: Path, step: int) -> int:
    """Remove records whose `step` is later than `step`, as a resumed run is about to write them again.

    Returns:
        How many were removed. The file is replaced in one rename.
    """
    if not path.exists():
        return 0
    records = list(read_json_lines(path))
    kept = [record for record in records if record.get("step", 0) <= step]
    write_text_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
    return len(records) - len(kept)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json_atomically(path: Path, value: Any) -> None:
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
