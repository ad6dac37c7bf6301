"""A snapshot of a run drawn for a terminal: whole numbers or none, and what matters first where there is little room."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gptoss_rl.watch.alerts import WINDOW
from gptoss_rl.watch.load import Gpu
from gptoss_rl.watch.run_view import counted
from gptoss_rl.watch.snapshot import ROWS

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 40  # at most
LABELS, LAST, MEANS, SPARK_LEAST = 19, 23, 22, 10  # columns that each part of the table takes, margins included
BAR_WIDTH, BAR_LEAST = 50, 8
MAIL_WIDTH = 110  # where the output is no terminal
SAMPLE_CHARACTERS = 600  # from the end of a response, where the answer is
# Rows of figures that a short terminal keeps: so many before the sample goes, and so many in any case.
ROWS_BESIDE_SAMPLE, LEAST_ROWS = 6, 3
MAX_SPARK_STEPS = 800  # a long run is thinned before it is averaged
PHASE_COLOURS = {"generate": "cyan", "experience": "blue", "train": "magenta", "sync": "yellow"}
STATE_COLOURS = {"running": "green", "finished": "green", "starting": "yellow"} | dict.fromkeys(
    ("stopped", "stalled", "crashed"), "red"
)
# 95 % of the last value: the standard error is in the step itself.
ERRORS = {"reward/mean": "reward/se", "parity/kl": "parity/kl_se"}
Steps = list[dict[str, Any]]


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


def duration(seconds: float) -> str:
    hours, rest = divmod(max(0, int(seconds)), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def header(data: dict[str, Any]) -> Text:
    text = Text(data["run"] + "\n", style="bold")
    text.append(data["state"], style=f"bold {STATE_COLOURS[data['state']]}")
    text.append(f"  step {data['step']}" + (f" of {data['total_steps']}" if data["total_steps"] else ""))
    if data["seconds_per_step"]:
        text.append(f"  {data['seconds_per_step']:.2f} s a step")
    if data["eta_seconds"] is not None:
        text.append(f"  ETA {duration(data['eta_seconds'])}")
    text.append(f"  last sign of life {duration(data['age_seconds'])} ago", style="dim")
    return text


@dataclass(frozen=True)
class Columns:
    """What a table of some width has room for; a number that is cut reads as another one, so a column goes whole."""

    errors: bool
    means: bool
    spark: int  # characters, 0 for none


def columns(width: int) -> Columns:
    room = width - LABELS - LAST
    means = room >= MEANS + SPARK_LEAST
    spark = min(SPARK_WIDTH, room - MEANS * means - 2)
    return Columns(errors=room >= 0, means=means, spark=spark if spark >= SPARK_LEAST - 2 else 0)


def metric_table(data: dict[str, Any], steps: Steps, keys: Iterable[str], width: int) -> Table:
    """One row for each of `keys`."""
    has = columns(width)
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("last", justify="right", no_wrap=True)
    for head in (f"first {WINDOW}", f"last {WINDOW}") if has.means else ():
        table.add_column(head, justify="right", no_wrap=True)
    if has.spark:
        table.add_column("since the start", no_wrap=True)
    shown = steps[:: max(1, len(steps) // MAX_SPARK_STEPS)]
    for key, label, form in (row for row in ROWS if row[0] in keys):
        last = form.format(data["metrics"][key])
        if has.errors and key in ERRORS and math.isfinite(error := steps[-1].get(ERRORS[key], math.inf)):
            last += " ± " + form.format(1.96 * error)
        cells: list[Any] = [label, last]
        if has.means:
            cells += [form.format(mean) if mean is not None else "" for mean in ends(steps, key)]
        if has.spark:
            cells.append(Text(sparkline([s[key] for s in shown if key in s], has.spark), style="cyan"))
        table.add_row(*cells)
    return table


def ends(steps: Steps, key: str) -> tuple[float | None, float | None]:
    """Means over the first and over the last `WINDOW` steps: the trend; None while there are too few to tell them apart."""
    if len(steps) < 2 * WINDOW:
        return None, None
    first, last = ([s[key] for s in part if math.isfinite(s.get(key, math.nan))] for part in (steps[:WINDOW], steps[-WINDOW:]))
    return (statistics.fmean(first) if first else None), (statistics.fmean(last) if last else None)


def phase_bar(phases: dict[str, float], width: int) -> Text:
    """Share of each phase in a step as a bar where there is room for one, and its seconds."""
    figures = [(f"{name} {seconds:.2f} s", PHASE_COLOURS[name]) for name, seconds in phases.items()]
    text = Text("phases  ")
    room = min(BAR_WIDTH, width - len("phases    ") - len("  ".join(words for words, _ in figures)))
    if room >= BAR_LEAST:
        total, past = sum(phases.values()) or 1.0, 0.0
        for name, seconds in phases.items():
            start, past = round(room * past / total), past + seconds
            text.append("█" * (round(room * past / total) - start), style=PHASE_COLOURS[name])
        text.append("  ")
    return text.append_text(Text("  ").join(Text(words, style=colour) for words, colour in figures))


def facts(data: dict[str, Any]) -> list[Text]:
    """Evaluation, gates, sync and load, a line each."""
    lines = []
    if data["evaluation"]:
        e = data["evaluation"]
        interval = f"{e['interval'][0]:.1%} to {e['interval'][1]:.1%}"
        first = f", {e['first_pass_at_1']:.1%} at first" if e["first_step"] != e["step"] else ""
        lines.append(Text(f"pass@1  {e['pass_at_1']:.1%} ({interval}) at step {e['step']}{first}; n {e['n']} ({e['tier']})"))
    if data["canary"]:
        lines.append(Text(f"canary  passed: {canary_words(data['canary'])}"))
    if data["sync"]:
        s = data["sync"]
        by = f"by {counted(s['workers'], 'worker')} of {counted(s['engines'], 'engine')}"
        lines.append(Text(f"sync    {s['proven']} proven, last version {s['policy_version']} {by}, "
                          f"{counted(s['modules'], 'module')}, {s['mode']}"))  # fmt: skip
    host = data["host"]
    load = f"load    {host['load']:.1f} on {counted(host['cpus'], 'CPU')}  {gib(host['memory_used'], host['memory'])}"
    return [*lines, Text(load + gpu_words(data["gpus"]), style="dim")]


def canary_words(canary: dict[str, Any]) -> str:
    """How far trainer and sampler were apart before step 1, and how alike a change of the adapter moved them."""
    figures = (("parity {:.4f} nats", "parity/abs_diff_mean"), ("correlation {:.3f}", "correlation"))
    return ", ".join(words.format(canary[key]) for words, key in figures if key in canary)


def gib(used: float | None, total: float | None) -> str:
    """`3/24 GiB`, of bytes; `?` for what is not known."""
    return "/".join("?" if size is None else f"{size / 2**30:.0f}" for size in (used, total)) + " GiB"


def gpu_words(gpus: list[Gpu] | None) -> str:
    if gpus is None:
        return "  GPU load unknown: no answer from nvidia-smi"
    words = ""
    for gpu in gpus:
        percent = "load unknown" if gpu["percent"] is None else f"{gpu['percent']:.0f}%"
        used, total = (None if mib is None else mib * 2**20 for mib in (gpu["used_mib"], gpu["total_mib"]))
        words += f"  {percent} {gib(used, total)}"
    return words


def sample_panel(sample: dict[str, Any], lines: int | None) -> Panel:
    """The problem on its first line, then the end of the response, in `lines` lines where these are few."""
    verdict = Text("right", style="green") if sample.get("correct") else Text("wrong", style="red")
    title = Text.assemble(f"step {sample['step']}, answer {sample.get('answer')}, label {sample.get('label')}, ", verdict)
    problem = Text(" ".join(sample["problem"].split()), style="bold", no_wrap=True, overflow="ellipsis")
    response = sample["response"][-SAMPLE_CHARACTERS:]
    if lines is None:
        text = Text(response)
    else:  # one line, and its end is what counts
        response = " ".join(response.split())
        text = Text(response if len(response) <= lines else "…" + response[1 - lines :], no_wrap=True)
    return Panel(Group(problem, text), title=title, title_align="left", border_style="dim")


def is_flat(steps: Steps, key: str) -> bool:
    """Whether a figure never changed, which takes no row to say when rows are scarce."""
    return len({s[key] for s in steps if key in s}) <= 1


def lines_of(view: Group, width: int) -> int:
    return len(Console(width=width).render_lines(view, pad=False))


def render(data: dict[str, Any], steps: Steps, width: int = MAIL_WIDTH, height: int | None = None) -> Group:
    """The view for a terminal of `width` columns. What `height` lines cannot hold is left out, least telling things first."""
    keys = list(data["metrics"])
    view = layout(data, steps, keys, width)
    if height is None or lines_of(view, width) <= height:
        return view
    keys = [key for key in keys if not is_flat(steps, key)] or keys[:LEAST_ROWS]
    for sample, least in (("whole", len(keys)), ("short", ROWS_BESIDE_SAMPLE), ("none", LEAST_ROWS)):
        view = layout(data, steps, keys, width, sample)
        if (over := lines_of(view, width) - height) <= 0:
            return view
        if len(keys) - over - 1 >= least:  # one line says that rows are missing
            return layout(data, steps, keys[: len(keys) - over - 1], width, sample)
    return layout(data, steps, keys[:LEAST_ROWS], width, "none")


def layout(data: dict[str, Any], steps: Steps, keys: list[str], width: int, sample: str = "whole") -> Group:
    """What went wrong stands right under the header: a short terminal cuts the end."""
    parts: list[Any] = [header(data)]
    parts += [Text(f"! {message}", style="bold red") for message in data["alerts"]]
    parts += [Text(message[:400], style="yellow") for message in data["messages"]]
    if steps:
        parts += [metric_table(data, steps, keys, width), phase_bar(data["phases"], width)]
    parts += facts(data)
    if left_out := len(data["metrics"]) - len(keys):
        parts.append(Text(f"{left_out} of {len(data['metrics'])} rows not shown: no room", style="dim"))
    if data["sample"] and sample != "none":
        parts.append(sample_panel(data["sample"], None if sample == "whole" else width - 4))
    return Group(*parts)
