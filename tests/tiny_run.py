"""Short runs of the tiny launcher, as a user starts them."""

import os
import signal
import subprocess
from pathlib import Path

from gptoss_rl.run_files import read_json_lines

ROOT = Path(__file__).resolve().parent.parent
PROMPTS_A_STEP = 4
RUN_SECONDS = 900


def make_tiny() -> Path:
    """The tiny model and its problems, made once by the script that the README names."""
    subprocess.run([ROOT / ".venv/bin/python", "make_tiny_gptoss.py"], cwd=ROOT, check=True)
    return ROOT / "models" / "tiny-gptoss"


def command(run_dir: Path, eval_file: Path, steps: int, *flags: str) -> list[str]:
    batch = ["--rollout_batch_size", PROMPTS_A_STEP, "--n_samples_per_prompt", 4, "--train_batch_size", 16,
             "--micro_train_batch_size", 8, "--micro_rollout_batch_size", 8]  # fmt: skip
    length = ["--max_samples", steps * PROMPTS_A_STEP, "--allow_short", "--lr_warmup_ratio", 0]
    where = ["--run_dir", run_dir, "--eval_dataset", eval_file]
    return [str(word) for word in ["bash", ROOT / "train_grpo_tiny_cpu.sh", *batch, *length, *where, *flags]]


def run(run_dir: Path, eval_file: Path, steps: int, *flags: str) -> subprocess.CompletedProcess:
    """A run to its end; `output` holds what it printed, stderr in its place, and `launcher` the launcher's process id."""
    words = command(run_dir, eval_file, steps, *flags)
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=RUN_SECONDS)
        except BaseException:  # a deadline or Ctrl-C: the whole run ends, not the launcher alone
            os.killpg(process.pid, signal.SIGKILL)
            raise
    done = subprocess.CompletedProcess(words, process.returncode)
    done.output, done.launcher = output, process.pid
    return done


def lines(run_dir: Path, name: str) -> list[dict]:
    return list(read_json_lines(run_dir / f"{name}.jsonl"))
