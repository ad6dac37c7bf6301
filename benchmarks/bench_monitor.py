"""What watching costs: one refresh of the monitor at 10,000 steps, and the report of a run of 200.

python benchmarks/bench_monitor.py

Times are of one core (process time), so that whatever else runs does not count. nvidia-smi is asked in a thread beside the
refreshes and is no part of them.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from made_run import make_run, metrics_line
from rich.console import Console

from gptoss_rl.report import build
from gptoss_rl.run_files import JsonLines
from gptoss_rl.watch.run_view import RunView
from gptoss_rl.watch.screen import render
from gptoss_rl.watch.snapshot import snapshot

STEPS, REPEATS = 10_000, 20
SIZES = ((110, 45), (80, 24))  # columns and lines: everything fits, and rows have to be left out


def refresh(view: RunView, console: Console, width: int, height: int) -> float:
    """Seconds of one core for one look."""
    start = time.process_time()
    console.print(render(snapshot(view), view.steps, width, height))
    return time.process_time() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, open("/dev/null", "w") as nowhere:
        view = RunView(make_run(Path(folder, "long"), STEPS, finished=False))
        file = JsonLines(Path(folder, "long", "metrics.jsonl"))
        first = refresh(view, Console(file=nowhere, width=SIZES[0][0]), *SIZES[0])
        print(f"first look at {STEPS:,} steps   {first:7.3f} s")
        for width, height in SIZES:
            console, seconds = Console(file=nowhere, width=width), []
            for _ in range(REPEATS):
                file.write(metrics_line(len(view.steps) + 1, time.time()))
                seconds.append(refresh(view, console, width, height))
            print(f"each refresh at {width:3d} x {height}  {statistics.median(seconds):7.3f} s (median of {REPEATS})")
        short = make_run(Path(folder, "short"), 200)
        start = time.process_time()
        size = len(build([short]))
        print(f"report of 200 steps        {time.process_time() - start:7.3f} s, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
