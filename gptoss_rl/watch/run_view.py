"""What can be seen of a run from its files, while it runs or afterwards; reads only what was added since the last look."""

import json
import re
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_rl.prompts import problem_of
from gptoss_rl.records import shares_by_step
from gptoss_rl.run_files import launcher_alive, read_json
from gptoss_rl.stats import score, tier_of

# What a line of each file must have to be read at all.
FILES = {
    "metrics": ("step", "time"),
    "sync": ("engines", "workers", "modules", "mode"),  # the policy version is null where a sync failed before it had one
    "samples": ("step", "response"),
    "eval": ("step", "id", "prompt", "response", "correct"),
}
LOG_TAIL = 200_000  # bytes of train.log that are searched for messages
STALL_FACTOR, STALL_SECONDS = 5.0, 120.0  # a step that takes longer than both is a stall
START_SECONDS = 1800.0  # until the first step after a launch: a large model is loaded, proven and evaluated before it
MESSAGE = re.compile(r"(?:\[gate [a-z ]+\]|\b[A-Za-z]+Error\b:|refused:)[^\n]*")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Tail:
    """Records of a growing JSONL file. A file that was replaced or cut (a resumed run does that) is read anew.

    Lines that a crash tore are passed over. Whole ones that are no object or lack one of `needs` are, too, and are counted.
    """

    def __init__(self, path: Path, needs: tuple[str, ...] = ()):
        self.path, self.needs, self.records, self.strange = path, needs, [], 0
        self._inode, self._offset = None, 0

    def refresh(self) -> list[dict[str, Any]]:
        """All records so far. A last line without its line break is left for the next look."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return self.records
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._inode, self._offset, self.records, self.strange = status.st_ino, 0, [], 0
        if status.st_size > self._offset:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # torn by a crash; what follows it is whole
                if isinstance(record, dict) and all(record.get(key) is not None for key in self.needs):
                    self.records.append(record)
                else:
                    self.strange += 1
        return self.records


def is_run(folder: Path) -> bool:
    """Whether a launcher made this folder. A resumption into a new one leaves `command.resume0.txt` alone."""
    return any(folder.glob("command*.txt"))


def counted(count: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def problem_text(record: dict[str, Any]) -> str:
    """The problem of a sample or an evaluation, without the prompt around it."""
    prompt = record.get("prompt") or ""
    return problem_of(prompt) or prompt


@dataclass
class RunView:
    """One run directory."""

    folder: Path
    tails: dict[str, Tail] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    _evaluated: int = 0
    _total: int | None = None

    def __post_init__(self) -> None:
        if not is_run(self.folder):
            raise FileNotFoundError(f"{self.folder} is no run directory: no command.txt is in it; runs are folders under runs/")
        self.tails = {name: Tail(self.folder / f"{name}.jsonl", needs) for name, needs in FILES.items()}

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, the one of its last resumption if there are several; empty when there is none."""
        stem = Path(name).stem
        found = sorted(self.folder.glob(f"{stem}*.json"), key=lambda p: p.stat().st_mtime)
        return read_json(found[-1]) if found else {}

    def config(self) -> dict[str, Any]:
        """The run's flags; empty when they were not recorded."""
        return self.read_json("config.json")

    @property
    def steps(self) -> list[dict[str, Any]]:
        return self.tails["metrics"].refresh()

    def evaluation_records(self) -> list[dict[str, Any]]:
        """A record for every sample of every evaluation."""
        return self.tails["eval"].refresh()

    def refresh_evaluations(self) -> list[dict[str, Any]]:
        """One entry for every evaluation, in the order of steps: step, n problems, pass@1 and its 95 % interval."""
        records = self.evaluation_records()
        if len(records) != self._evaluated:
            scores = {step: score(list(shares.values())) for step, shares in shares_by_step(records).items()}
            self.evaluations = [
                {
                    "step": step,
                    "n": s.n,
                    "tier": tier_of(s.n, self.config().get("eval_dataset")).name,
                    "pass_at_1": s.mean,
                    "interval": [s.low, s.high],
                }
                for step, s in scores.items()
            ]
            self._evaluated = len(records)
        return self.evaluations

    def total_steps(self) -> int | None:
        """Global steps of the whole run, as far as its configuration tells."""
        if self._total is None:
            self._total = self._count_total_steps()
        return self._total

    def _count_total_steps(self) -> int | None:
        config = self.config()
        try:
            prompts = min(int(config["max_samples"]), count_lines(Path(config["prompt_data"])))
            return prompts // config["rollout_batch_size"] * config["num_episodes"]
        except (KeyError, OSError, TypeError):
            return None

    def state(self, now: float | None = None) -> str:
        """`starting`, `running`, `finished`, `stopped` (by a gate or an error), `stalled` or `crashed`."""
        now = time.time() if now is None else now
        steps, last = self.steps, self.last_sign()
        if (self.folder / "summary.json").is_file() and (self.folder / "summary.json").stat().st_mtime >= last - 1:
            return "finished"
        if self.read_json("exit.json").get("status"):
            return "stopped"
        alive = launcher_alive(self.read_json("process.json"))
        if alive is False:
            return "crashed"
        stepped = bool(steps) and last == steps[-1]["time"]
        if now - last > (max(STALL_SECONDS, STALL_FACTOR * self.seconds_per_step()) if stepped else START_SECONDS):
            return "stalled"
        return "running" if steps else "starting"

    def last_sign(self) -> float:
        """Unix time of the last step, launch or resumption, whichever is latest."""
        again = [path.stat().st_mtime for path in self.folder.glob("command.resume*.txt")]
        if self.steps:
            return max([self.steps[-1]["time"], *again])
        return max(path.stat().st_mtime for path in self.folder.glob("command*.txt"))

    def seconds_per_step(self) -> float:
        """Median of the last 50 steps; 0 without one."""
        recent = [s["time/step"] for s in self.steps[-50:] if "time/step" in s]
        return statistics.median(recent) if recent else 0.0

    def strange_lines(self) -> list[str]:
        """One sentence for each file with lines that are JSON but no record of a run."""
        counts = {name: tail.strange for name, tail in self.tails.items()}
        return [f"{name}.jsonl: {counted(n, 'line')} passed over: no record of a run" for name, n in counts.items() if n]

    def resumptions(self) -> list[str]:
        """One sentence for each time that the run was resumed."""
        found = sorted(self.folder.glob("command.resume*.txt"), key=lambda path: path.stat().st_mtime)
        return [f"resumed at {time.strftime('%Y-%m-%d %H:%M', time.localtime(path.stat().st_mtime))}" for path in found]

    def messages(self, count: int = 3) -> list[str]:
        """The last messages of errors and gates in train.log, without repetition; gates last: they say why a run stopped."""
        log = self.folder / "train.log"
        if not log.exists():
            return []
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL))
            text = ANSI.sub("", file.read().decode("utf-8", "replace"))
        lines = (match.group().strip() for match in MESSAGE.finditer(text))
        found = list(dict.fromkeys(line[max(0, line.find("[gate ")) :] for line in lines))
        found.sort(key=lambda message: message.startswith("[gate"))
        return found[-count:]

    def last_sample(self) -> dict[str, Any] | None:
        samples = self.tails["samples"].refresh()
        return samples[-1] if samples else None

    def syncs(self) -> list[dict[str, Any]]:
        """Every sync of the run so far that was proven."""
        return [record for record in self.tails["sync"].refresh() if "error" not in record]

    def failed_sync(self) -> dict[str, Any] | None:
        """The sync that stopped the run, with the answers that there were; None when the last one was proven."""
        records = self.tails["sync"].refresh()
        return records[-1] if records and "error" in records[-1] else None

    def canary(self) -> dict[str, Any]:
        """Figures of the canary that the run passed before its first step; empty when there was none."""
        return self.read_json("canary.json")


def count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())
