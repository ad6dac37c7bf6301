"""What watching costs: one refresh of the monitor at 10,000 steps, and the report of a run of 200.

python benchmarks/bench_monitor.py
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from made_run import make_run, metrics_line
from rich.console import Console

from gptoss_rl.monitor import render, snapshot
from gptoss_rl.report import build
from gptoss_rl.run_files import JsonLines
from gptoss_rl.run_view import RunView

STEPS, REPEATS = 10_000, 20


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, open("/dev/null", "w") as nowhere:
        view = RunView(make_run(Path(folder, "long"), STEPS, finished=False))
        console = Console(file=nowhere, width=120)
        start = time.perf_counter()
        console.print(render(snapshot(view), view.steps))
        print(f"first look at {STEPS:,} steps     {time.perf_counter() - start:7.3f} s")
        seconds, file = [], JsonLines(Path(folder, "long", "metrics.jsonl"))
        for step in range(REPEATS):
            file.write(metrics_line(STEPS + step + 1, time.time()))
            start = time.perf_counter()
            console.print(render(snapshot(view), view.steps))
            seconds.append(time.perf_counter() - start)
        print(f"each further refresh         {statistics.median(seconds):7.3f} s (median of {REPEATS})")
        short = make_run(Path(folder, "short"), 200)
        start = time.perf_counter()
        size = len(build([short]))
        print(f"report of 200 steps          {time.perf_counter() - start:7.3f} s, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
