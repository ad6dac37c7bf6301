"""The files of a run: append-only JSON lines, flushed a line at a time, readable after any crash."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 16  # bytes read at once when looking for the last line


class JsonLines:
    """Appends records to one file. A line is written in one call and flushed, so a crash tears the last line at most."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        _mend_last_line(path)
        self.file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(record, ensure_ascii=False, allow_nan=True) + "\n")
        self.file.flush()


def _mend_last_line(path: Path) -> None:
    """Cut a torn last line off, so that it becomes no broken one in the middle. A record without its line break gets it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        start = end = file.seek(0, os.SEEK_END)
        tail = b""
        while start and b"\n" not in tail:  # backwards: files of a long run are large
            start = max(0, start - BLOCK)
            file.seek(start)
            tail = file.read(end - start)
        torn = tail.rpartition(b"\n")[2]
        try:
            json.loads(torn)
        except ValueError:
            file.truncate(end - len(torn))
        else:
            file.write(b"\n")  # the position is the end of the file


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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when the file is missing or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


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
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # a full disk, a directory in the way, Ctrl-C: nothing half-made stays
        temporary.unlink(missing_ok=True)
        raise


def write_json_atomically(path: Path, value: Any) -> None:
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def process_record() -> dict[str, Any]:
    """How a monitor recognises the launcher that called this process: host, process id and its start time."""
    pid = os.getppid()
    return {"host": socket.gethostname(), "pid": pid, "start": process_start(pid)}


def process_start(pid: int) -> int | None:
    """Start of a process in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)); None when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def launcher_alive(record: dict[str, Any]) -> bool | None:
    """Whether the run's launcher is still there; None when that cannot be told from this host."""
    if not record or record.get("host") != socket.gethostname():
        return None
    return record["start"] is not None and process_start(record["pid"]) == record["start"]
