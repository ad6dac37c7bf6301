"""Kills each part of a starting run in each phase: how soon the run ends, what it says, and whether the folder is free again.

The tiny run on a CPU, one start a line; about a minute each. The last result is in results/.

    python benchmarks/start_deaths.py                       # all
    python benchmarks/start_deaths.py --only engine driver
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deaths import Outcome, die  # noqa: E402
from tiny_run import make_tiny  # noqa: E402

from gptoss_rl.run.directory import check_unoccupied, steps_taken  # noqa: E402
from gptoss_rl.sync.local_engine import engine_arguments  # noqa: E402

MOMENTS = ("loading", "proving", "evaluating", "step")
# Part -> flags under which there is one.
PARTS: dict[str, list[str]] = {
    "engine": [],
    "vLLM core": [],
    "trainer": [],
    "controller": [],
    "driver": [],
    "raylet": [],
    "gcs": [],
    "ray worker of vLLM": ["--vllm_tensor_parallel_size", "2", "--num_devices", "3"],
}


def reusable(run_dir: Path) -> str:
    """Whether the folder can be used again; one with steps must not be."""
    if steps_taken(run_dir):
        return "has steps"
    check_unoccupied(engine_arguments(run_dir=str(run_dir)))
    return "free"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts; default: all")
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=MOMENTS, help="default: all")
    args = parser.parse_args()
    make_tiny()
    print("| part | killed when | s to the end | status | folder | left | message |\n|---|---|---|---|---|---|---|")
    late = 0
    with tempfile.TemporaryDirectory() as folder:
        problems = (ROOT / "data" / "tiny_eval.jsonl").read_text().splitlines(keepends=True)
        eval_file = Path(folder, "eval.jsonl")
        eval_file.write_text("".join(problems[:400]))  # enough for an evaluation to be killed in
        for part in args.only:
            for moment in args.moments:
                run_dir = Path(folder, f"{part}-{moment}".replace(" ", "-"))
                found: Outcome = die(part, moment, run_dir, eval_file, *PARTS[part])
                left = found.processes + found.shared
                late += found.seconds > 15 or bool(left)
                print(f"| {part} | {moment} | {found.seconds:.1f} | {found.status} | {reusable(run_dir)} | "
                      f"{', '.join(left) or 'nothing'} | {found.sentence[:200]} |", flush=True)  # fmt: skip
    sys.exit(f"{late} took longer than 15 s or left something" if late else 0)


if __name__ == "__main__":
    main()
