"""What can be seen of a run from its files, while it runs or afterwards; reads only what was added since the last look."""

import json
import os
import re
import socket
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_rl.run_files import read_json_lines

PHASES = ("generate", "experience", "train", "sync")
LOG_TAIL = 200_000  # bytes of train.log that are searched for messages
STALL_FACTOR, STALL_SECONDS = 5.0, 120.0  # a step that takes longer than both is a stall
MESSAGE = re.compile(r"(?:\[gate [a-z ]+\]|\b[A-Za-z]+Error\b:|refused:)[^\n]*")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Tail:
    """Records of a growing JSONL file. A file that was replaced or cut (a resumed run does that) is read anew."""

    def __init__(self, path: Path):
        self.path, self.records = path, []
        self._inode, self._offset = None, 0

    def refresh(self) -> list[dict[str, Any]]:
        """All records so far. A last line without its line break is left for the next look."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return self.records
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._inode, self._offset, self.records = status.st_ino, 0, []
        if status.st_size > self._offset:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.splitlines():
                try:
                    self.records.append(json.loads(line))
                except ValueError:
                    continue  # torn by a crash; what follows it is whole
        return self.records


@dataclass
class RunView:
    """One run directory."""

    folder: Path
    tails: dict[str, Tail] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    _evaluated: int = 0
    _total: int | None = None

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is no run directory; runs are folders under runs/")
        self.tails = {name: Tail(self.folder / f"{name}.jsonl") for name in ("metrics", "sync", "samples", "eval")}

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, the one of its last resumption if there are several; empty when there is none."""
        stem = Path(name).stem
        found = sorted(self.folder.glob(f"{stem}*.json"), key=lambda p: p.stat().st_mtime)
        try:
            return json.loads(found[-1].read_text()) if found else {}
        except ValueError:
            return {}

    @property
    def steps(self) -> list[dict[str, Any]]:
        return self.tails["metrics"].refresh()

    def refresh_evaluations(self) -> list[dict[str, Any]]:
        """One entry for every evaluation: step, n, solved; in the order of steps."""
        records = self.tails["eval"].refresh()
        if len(records) != self._evaluated:
            by_step: dict[int, dict[str, bool]] = {}
            for record in records:
                by_step.setdefault(record["step"], {})[record["id"]] = bool(record["correct"])
            self.evaluations = [
                {"step": step, "n": len(results), "solved": sum(results.values())} for step, results in sorted(by_step.items())
            ]
            self._evaluated = len(records)
        return self.evaluations

    def total_steps(self) -> int | None:
        """Global steps of the whole run, as far as its configuration tells."""
        if self._total is None:
            self._total = self._count_total_steps()
        return self._total

    def _count_total_steps(self) -> int | None:
        config = self.read_json("config.json")
        try:
            prompts = min(int(config["max_samples"]), count_lines(Path(config["prompt_data"])))
            return prompts // config["rollout_batch_size"] * config["num_episodes"]
        except (KeyError, OSError, TypeError):
            return None

    def state(self, now: float | None = None) -> str:
        """`starting`, `running`, `finished`, `stalled` or `crashed`."""
        now = time.time() if now is None else now
        steps = self.steps
        last = steps[-1]["time"] if steps else self.started()
        if (self.folder / "summary.json").is_file() and (self.folder / "summary.json").stat().st_mtime >= last - 1:
            return "finished"
        alive = launcher_alive(self.read_json("process.json"))
        if alive is False:
            return "crashed"
        if now - last > max(STALL_SECONDS, STALL_FACTOR * self.seconds_per_step()):
            return "stalled"
        return "running" if steps else "starting"

    def started(self) -> float:
        """Unix time of the launch."""
        command = self.folder / "command.txt"
        return command.stat().st_mtime if command.exists() else self.folder.stat().st_mtime

    def seconds_per_step(self) -> float:
        """Median of the last 50 steps; 0 without one."""
        recent = [s["time/step"] for s in self.steps[-50:] if "time/step" in s]
        return statistics.median(recent) if recent else 0.0

    def messages(self, count: int = 3) -> list[str]:
        """The last messages of gates and errors in train.log, without repetition."""
        log = self.folder / "train.log"
        if not log.exists():
            return []
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL))
            text = ANSI.sub("", file.read().decode("utf-8", "replace"))
        found = list(dict.fromkeys(match.group().strip() for match in MESSAGE.finditer(text)))
        return found[-count:]

    def last_sample(self) -> dict[str, Any] | None:
        samples = self.tails["samples"].refresh()
        return samples[-1] if samples else None

    def last_sync(self) -> dict[str, Any] | None:
        syncs = self.tails["sync"].refresh()
        return syncs[-1] if syncs else None


def count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


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


def paired_results(folder: Path) -> dict[int, dict[str, bool]]:
    """step -> problem id -> solved."""
    from gptoss_rl.summary import greedy_results

    return greedy_results(list(read_json_lines(folder / "eval.jsonl")))
