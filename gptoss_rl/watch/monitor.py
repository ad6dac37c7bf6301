"""A live view of a run in the terminal; `monitor.sh` calls it.

bash monitor.sh                      # the newest run under runs/
bash monitor.sh runs/NAME            # that one; running, finished, crashed or resumed
bash monitor.sh runs/NAME --once     # once, for a cron mail; so is any output that is no terminal
bash monitor.sh runs/NAME --json     # once, for a script; null for a figure that is not finite
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from gptoss_rl.watch.load import ANSWER_SECONDS, GpuWatch
from gptoss_rl.watch.run_view import RunView, is_run
from gptoss_rl.watch.screen import MAIL_WIDTH, render
from gptoss_rl.watch.snapshot import snapshot, without_infinities


def newest_run(root: Path) -> Path:
    """Raises FileNotFoundError when there is none."""
    runs = [p for p in root.glob("*") if is_run(p)]
    if not runs:
        raise FileNotFoundError(f"{root} holds no run; name one, or start one with a train_grpo_*.sh")
    return max(runs, key=lambda p: max(path.stat().st_mtime for path in p.glob("command*.txt")))


def seconds(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(prog="monitor.sh", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, nargs="?", help="default: the newest run under runs/")
    parser.add_argument("--once", action="store_true", help="print once and exit; the default where the output is no terminal")
    parser.add_argument("--json", action="store_true", help="print the figures once, as JSON, and exit")
    parser.add_argument("--interval", type=seconds, default=2.0, help="seconds between two looks")
    args = parser.parse_args()
    try:
        view = RunView(args.run_dir or newest_run(Path("runs")))
    except FileNotFoundError as error:
        sys.exit(f"monitor: {error}")
    gpus = GpuWatch()
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else MAIL_WIDTH)
    if args.json:
        data = without_infinities(snapshot(view, gpus.latest(ANSWER_SECONDS)))
        print(json.dumps(data, ensure_ascii=False, allow_nan=False))
    elif args.once or not terminal:
        console.print(render(snapshot(view, gpus.latest(ANSWER_SECONDS)), view.steps, console.width))
    else:
        watch(view, gpus, console, args.interval)


def watch(view: RunView, gpus: GpuWatch, console: Console, interval: float) -> None:
    """Until Ctrl-C."""
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                drawn = render(snapshot(view, gpus.latest()), view.steps, *console.size)
                live.update(drawn, refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
