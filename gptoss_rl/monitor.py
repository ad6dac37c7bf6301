"""A live view of a run in the terminal; `monitor.sh` calls it.

bash monitor.sh                      # the newest run under runs/
bash monitor.sh runs/NAME            # that one; running, finished, crashed or resumed
bash monitor.sh runs/NAME --once     # once, for a cron mail
bash monitor.sh runs/NAME --json     # once, for a script
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gptoss_rl.alerts import alerts
from gptoss_rl.run_view import PHASES, RunView
from gptoss_rl.stats import wilson

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 40
MAX_SPARK_STEPS = 800  # a long run is thinned before it is averaged
PHASE_COLOURS = {"generate": "cyan", "experience": "blue", "train": "magenta", "sync": "yellow"}
STATE_COLOURS = {"running": "green", "finished": "green", "starting": "yellow", "stalled": "red", "crashed": "red"}
# Key, label, format; one row each, in this order.
ROWS = (
    ("reward/mean", "reward", "{:.3f}"),
    ("policy/entropy", "entropy (nats)", "{:.4f}"),
    ("parity/kl", "KL trainer - sampler", "{:.2e}"),
    ("parity/abs_diff_mean", "mean |dlogp|", "{:.4f}"),
    ("policy/kl_to_base", "KL to base", "{:.4f}"),
    ("ratio/clipped_low", "clipped low", "{:.2%}"),
    ("ratio/clipped_high", "clipped high", "{:.2%}"),
    ("optimizer/gradient_norm", "gradient norm", "{:.4g}"),
    ("batch/skipped", "no variance", "{:.0%}"),
    ("rollout/response_tokens_mean", "response tokens", "{:.0f}"),
    ("rollout/truncated", "truncated", "{:.1%}"),
    ("sync/seconds", "sync (s)", "{:.3f}"),
)


def sparkline(values: list[float], width: int = SPARK_WIDTH) -> str:
    """Block characters for the values, averaged down to `width`; values that are not finite are left out."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return ""
    if len(values) > width:
        edges = [len(values) * i // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((v - low) * scale)] for v in values)


def gpu_load() -> list[dict[str, float]]:
    """Utilisation and memory of every GPU; empty without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=5)
    rows = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 2]
    return [{"percent": float(r[0]), "used_mib": float(r[1]), "total_mib": float(r[2])} for r in rows]


def snapshot(view: RunView, now: float | None = None) -> dict[str, Any]:
    """Everything that is shown, as data."""
    now = time.time() if now is None else now
    steps, state = view.steps, view.state(now)
    total, pace = view.total_steps(), view.seconds_per_step()
    step = steps[-1]["step"] if steps else 0
    sync, evaluations = view.last_sync(), view.refresh_evaluations()
    running = state in ("running", "starting")
    return {
        "run": str(view.folder),
        "state": state,
        "step": step,
        "total_steps": total,
        "seconds_per_step": pace,
        "eta_seconds": (total - step) * pace if running and total and pace else None,
        "age_seconds": now - (steps[-1]["time"] if steps else view.started()),
        "metrics": {key: steps[-1][key] for key, _, _ in ROWS if steps and key in steps[-1]},
        "phases": {p: steps[-1].get(f"time/{p}", 0.0) for p in PHASES} if steps else {},
        "evaluation": evaluation_figures(evaluations),
        "sync": {k: sync[k] for k in ("policy_version", "engines", "workers", "modules", "mode")} if sync else None,
        "host": {"load": os.getloadavg()[0], "cpus": os.cpu_count()},
        "gpus": gpu_load(),
        "alerts": alerts(steps, state),
        "messages": view.messages(),
        "sample": view.last_sample(),
    }


def evaluation_figures(evaluations: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not evaluations:
        return None
    last = evaluations[-1]
    return {**last, "pass_at_1": last["solved"] / last["n"], "interval": wilson(last["solved"], last["n"]),
            "first_pass_at_1": evaluations[0]["solved"] / evaluations[0]["n"]}  # fmt: skip


def duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def header(data: dict[str, Any]) -> Text:
    text = Text(data["run"] + "  ", style="bold")
    text.append(data["state"], style=f"bold {STATE_COLOURS[data['state']]}")
    text.append(f"  step {data['step']}" + (f" of {data['total_steps']}" if data["total_steps"] else ""))
    if data["seconds_per_step"]:
        text.append(f"  {data['seconds_per_step']:.2f} s a step")
    if data["eta_seconds"] is not None:
        text.append(f"  ETA {duration(data['eta_seconds'])}")
    text.append(f"  last sign of life {duration(data['age_seconds'])} ago", style="dim")
    return text


def metric_table(data: dict[str, Any], steps: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("")
    table.add_column("last", justify="right")
    table.add_column("since the start")
    shown = steps[:: max(1, len(steps) // MAX_SPARK_STEPS)]
    for key, label, form in ROWS:
        if key in data["metrics"]:
            values = [s[key] for s in shown if key in s]
            table.add_row(label, form.format(data["metrics"][key]), Text(sparkline(values), style="cyan"))
    return table


def phase_bar(phases: dict[str, float], width: int = 50) -> Text:
    total = sum(phases.values()) or 1.0
    text = Text("phases  ")
    for name, seconds in phases.items():
        text.append("█" * round(width * seconds / total), style=PHASE_COLOURS[name])
    for name, seconds in phases.items():
        text.append(f"  {name} {seconds:.2f} s", style=PHASE_COLOURS[name])
    return text


def facts(data: dict[str, Any]) -> list[Text]:
    """Evaluation, sync and load, a line each."""
    lines = []
    if data["evaluation"]:
        e = data["evaluation"]
        interval = f"{e['interval'][0]:.1%} to {e['interval'][1]:.1%}"
        lines.append(Text(f"pass@1  {e['pass_at_1']:.1%} ({interval}) on {e['n']} problems at step {e['step']}; "
                          f"{e['first_pass_at_1']:.1%} at first"))  # fmt: skip
    if data["sync"]:
        s = data["sync"]
        lines.append(Text(f"sync    version {s['policy_version']} proven by {s['workers']} workers of {s['engines']} engines, "
                          f"{s['modules']} modules, {s['mode']}"))  # fmt: skip
    load = f"load    {data['host']['load']:.1f} on {data['host']['cpus']} CPUs"
    gpus = "".join(f"  {g['percent']:.0f}% {g['used_mib'] / 1024:.0f}/{g['total_mib'] / 1024:.0f} GiB" for g in data["gpus"])
    return [*lines, Text(load + gpus, style="dim")]


def sample_panel(sample: dict[str, Any]) -> Panel:
    verdict = Text("right" if sample["correct"] else "wrong", style="green" if sample["correct"] else "red")
    title = Text.assemble(f"step {sample['step']}, answer {sample['answer']}, label {sample['label']}, ", verdict)
    return Panel(Text(sample["response"][-600:]), title=title, title_align="left", border_style="dim")


def render(data: dict[str, Any], steps: list[dict[str, Any]]) -> Group:
    """The whole view."""
    parts: list[Any] = [header(data)]
    parts += [Text(f"! {message}", style="bold red") for message in data["alerts"]]
    if steps:
        parts += [metric_table(data, steps), phase_bar(data["phases"])]
    parts += facts(data)
    parts += [Text(message[:400], style="yellow") for message in data["messages"]]
    if data["sample"]:
        parts.append(sample_panel(data["sample"]))
    return Group(*parts)


def newest_run(root: Path) -> Path:
    """Raises FileNotFoundError when there is none."""
    runs = [p for p in root.glob("*") if (p / "command.txt").is_file()]
    if not runs:
        raise FileNotFoundError(f"{root} holds no run; name one, or start one with a train_grpo_*.sh")
    return max(runs, key=lambda p: (p / "command.txt").stat().st_mtime)


def main() -> None:
    parser = argparse.ArgumentParser(prog="monitor.sh", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, nargs="?", help="default: the newest run under runs/")
    parser.add_argument("--once", action="store_true", help="print once and exit")
    parser.add_argument("--json", action="store_true", help="print the figures once, as JSON, and exit")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two looks")
    args = parser.parse_args()
    try:
        view = RunView(args.run_dir or newest_run(Path("runs")))
    except FileNotFoundError as error:
        sys.exit(f"monitor: {error}")
    console = Console()
    if args.json:
        print(json.dumps(snapshot(view), ensure_ascii=False))
    elif args.once:
        console.print(render(snapshot(view), view.steps))
    else:
        watch(view, console, args.interval)


def watch(view: RunView, console: Console, interval: float) -> None:
    """Until Ctrl-C."""
    try:
        with Live(render(snapshot(view), view.steps), console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                time.sleep(interval)
                live.update(render(snapshot(view), view.steps), refresh=True)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
