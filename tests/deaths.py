"""A start of the tiny run in which one part dies at a chosen moment: how soon the run ends, what it says, what it leaves."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from tiny_run import ROOT, command, lines

from gptoss_rl.run.leftovers import MARK, SHM
from gptoss_rl.watch.run_view import RunView

# Part -> what its process's title begins with: Ray and vLLM set it.
TITLES = {
    "engine": "ray::LLMRayActor",
    "vLLM core": "VLLM::EngineCore",
    "vLLM worker": "VLLM::Worker",
    "ray worker of vLLM": "ray::RayWorkerWrapper",
    "trainer": "ray::PolicyModelActor",
    "controller": "ray::PPOTrainer",
    "driver": "-m openrlhf.cli.train_ppo_ray",
    "raylet": "/raylet/raylet",
    "gcs": "/gcs/gcs_server",
}
START_SECONDS = 300.0  # until a moment comes
LOADING_SECONDS = 3.0
END_SECONDS = 120.0  # until the run has ended


@dataclass
class Outcome:
    """What became of a start."""

    part: str
    moment: str
    seconds: float  # from the death to the end of the launcher
    status: int
    sentence: str  # the last message of a gate or an error
    processes: list[str]  # that are left
    shared: list[str]  # files of /dev/shm that were not there before, whoever made them


def marked(launcher: int) -> dict[int, str]:
    """Process id -> command line or title of everything that the launcher has started."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(f"{launcher}-"):
                found[process.pid] = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def has_come(moment: str, seen_seconds: float, run_dir: Path) -> bool:
    """Whether a start is at one of the moments below; `loading` is some seconds after the part appeared."""
    return {
        "loading": lambda: seen_seconds >= LOADING_SECONDS,
        "proving": lambda: bool(lines(run_dir, "sync")),
        "evaluating": lambda: (run_dir / "canary.json").exists(),
        "step": lambda: bool(lines(run_dir, "metrics")),
        "step 3": lambda: len(lines(run_dir, "metrics")) >= 3,
    }[moment]()


def die(part: str, moment: str, run_dir: Path, eval_file: Path, *flags: str, steps: int = 50) -> Outcome:
    """Start a run, kill one process of `part` with SIGKILL at the moment, and wait for the launcher to end."""
    before = set(Path(SHM).iterdir())
    printed = run_dir.with_suffix(".printed")
    with printed.open("w") as out:
        launcher = subprocess.Popen(command(run_dir, eval_file, steps, *flags), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                                    stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        victim = wait_for_victim(launcher, part, moment, run_dir)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        try:
            launcher.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{END_SECONDS:g} s after the {part} died the run had not ended:\n{tail(printed)}") from None
        seconds = time.monotonic() - killed
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    left = [title[:60] for title in marked(launcher.pid).values()]
    shared = sorted(path.name for path in set(Path(SHM).iterdir()) - before)
    messages = RunView(run_dir).messages(1)
    return Outcome(part, moment, seconds, launcher.returncode, messages[-1] if messages else "", left, shared)


def wait_for_victim(launcher: subprocess.Popen, part: str, moment: str, run_dir: Path) -> int:
    """The process to kill, when its moment has come."""
    deadline, seen = time.monotonic() + START_SECONDS, None
    while time.monotonic() < deadline:
        victims = [pid for pid, title in marked(launcher.pid).items() if TITLES[part] in title]
        if victims:
            seen = seen or time.monotonic()
            if has_come(moment, time.monotonic() - seen, run_dir):
                return max(victims)
        if launcher.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"waited for a {part} ({moment}); the launcher's status is {launcher.poll()}:\n{run_dir}")


def tail(path: Path, size: int = 3000) -> str:
    return path.read_text(errors="replace")[-size:]
