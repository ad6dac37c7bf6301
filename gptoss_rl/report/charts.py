"""The report's charts as Vega-Lite: every curve with its points under the pointer, one colour a run throughout."""

import math
from itertools import cycle
from typing import Any

import altair as alt

from gptoss_rl.metrics import METRICS, PHASES
from gptoss_rl.watch.run_view import RunView

CURVES = (
    ("reward/mean", "Reward"),
    ("policy/entropy", "Entropy of trained tokens"),
    ("parity/kl", "KL of sampler and trainer"),
    ("optimizer/gradient_norm", "Gradient norm"),
    ("optimizer/learning_rate", "Learning rate"),
    ("rollout/response_tokens_mean", "Response length"),
    ("rollout/truncated", "Truncated responses"),
    ("reward/all_right", "Groups all right"),
    ("reward/all_wrong", "Groups all wrong"),
)
BANDS = {"reward/mean": "reward/se", "parity/kl": "parity/kl_se"}  # curve -> its standard error
MAX_POINTS = 600  # of a curve; longer ones are thinned, so that the file stays small
MAX_PHASE_POINTS = 200  # of each phase
TICKS = ".6~g"  # without a precision of its own, Vega labels 0.1 and 0.12 alike
CURVE_HEIGHT, EVALUATION_HEIGHT = 170, 200  # pixels
# Tableau's ten, Vega's default, which can be told apart on white and on black.
COLOURS = ("#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#eeca3b", "#b279a2", "#ff9da6", "#9d755d", "#bab0ac")
Runs = dict[str, RunView]


def charts(runs: Runs) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """id -> (title, one-line meaning, Vega-Lite specification)."""
    first = next(iter(runs))
    found: dict[str, tuple[str, str, Any]] = {
        "evaluation": ("pass@1", "held-out problems, with 95 % intervals", evaluation_chart(runs))
    }
    found |= {key.replace("/", "-"): (title, METRICS[key].meaning, curve(runs, key)) for key, title in CURVES}
    found["phases"] = ("Seconds a step", f"by phase, {first}", phase_chart(runs[first]))
    return {name: (title, meaning, chart.to_dict()) for name, (title, meaning, chart) in found.items() if chart}


def thinned(rows: list[Any], limit: int = MAX_POINTS) -> list[Any]:
    """At most `limit` rows, evenly taken, the last among them."""
    if len(rows) <= limit:
        return rows
    return [rows[(i + 1) * len(rows) // limit - 1] for i in range(limit)]


def curve(runs: Runs, key: str) -> alt.Chart | alt.LayerChart | None:
    """One metric of every run over steps, with its interval where steps carry one; None when no run has the metric."""
    rows = [
        {"step": s["step"], "value": s[key], "run": name, **band(s, key)}
        for name, view in runs.items()
        for s in thinned(view.steps)
        if isinstance(s.get(key), int | float) and math.isfinite(s[key])
    ]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows), width="container", height=CURVE_HEIGHT)
    drawn = [row[end] for row in rows for end in ("value", "low", "high") if end in row]
    y = {"title": axis_title(METRICS[key].unit), "scale": scale(drawn), "axis": alt.Axis(format=TICKS)}
    tooltip = [alt.Tooltip("run:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4g")]
    line = base.mark_line(point=alt.OverlayMarkDef(size=10), strokeWidth=1.5).encode(
        x=alt.X("step:Q", title="step"), y=alt.Y("value:Q", **y), tooltip=tooltip, color=run_colour(runs)
    )
    if not any("low" in row for row in rows):
        return line
    area = base.mark_area(opacity=0.2).transform_filter("isValid(datum.low)")
    area = area.encode(x="step:Q", y=alt.Y("low:Q", **y), y2="high:Q", color=run_colour(runs))
    return alt.layer(area, line)


def axis_title(unit: str) -> str | None:
    """A figure without a unit has no title: `1` would read as a tick."""
    return None if unit == "1" else unit


def scale(values: list[float]) -> alt.Scale:
    """Around one value that never changes: left to itself, Vega draws an axis of 0 alone and puts the line anywhere."""
    low, high = min(values), max(values)
    if low < high:
        return alt.Scale(zero=False)
    margin = abs(low) / 2 or 1.0
    return alt.Scale(domain=[low - margin if low < 0 else max(0.0, low - margin), low + margin])


def run_colour(runs: Runs) -> alt.Color:
    """Given in full, so that a run has its colour in charts where another one is missing. The page has the one legend."""
    return alt.Color("run:N", scale=alt.Scale(domain=list(runs), range=list(colours(runs).values())), legend=None)


def colours(runs: Runs) -> dict[str, str]:
    """Run -> colour, in the order of the command line; they come again after ten."""
    return dict(zip(runs, cycle(COLOURS), strict=False))


def band(step: dict[str, Any], key: str) -> dict[str, float]:
    """95 % interval of a step's figure; empty where it has none."""
    error = step.get(BANDS.get(key, ""), math.inf)
    return {"low": step[key] - 1.96 * error, "high": step[key] + 1.96 * error} if math.isfinite(error) else {}


def evaluation_chart(runs: Runs) -> alt.LayerChart | None:
    """pass@1 over steps with 95 % intervals."""
    rows = [
        {"run": name, "step": e["step"], "pass@1": e["pass_at_1"], "low": e["interval"][0], "high": e["interval"][1]}
        for name, view in runs.items()
        for e in view.refresh_evaluations()
    ]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows), width="container", height=EVALUATION_HEIGHT)
    x, y = alt.X("step:Q", title="step"), {"title": "pass@1", "scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%")}
    bars = base.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q", **y), y2="high:Q", color=run_colour(runs))
    tooltip = [alt.Tooltip("run:N"), "step:Q", *(alt.Tooltip(f"{k}:Q", format=".1%") for k in ("pass@1", "low", "high"))]
    line = base.mark_line(point=True).encode(x=x, y=alt.Y("pass@1:Q", **y), tooltip=tooltip, color=run_colour(runs))
    return alt.layer(bars, line)


def phase_chart(view: RunView) -> alt.Chart | None:
    """Seconds of each phase, stacked, over steps."""
    rows = [
        {"step": s["step"], "seconds": s.get(f"time/{phase}", 0.0), "phase": phase}
        for s in thinned(view.steps, MAX_PHASE_POINTS)
        for phase in PHASES
    ]
    if not rows:
        return None
    chart = alt.Chart(alt.Data(values=rows), width="container", height=CURVE_HEIGHT).mark_area()
    return chart.encode(
        x=alt.X("step:Q", title="step"), y=alt.Y("seconds:Q", stack=True, title="s"),
        color=alt.Color("phase:N", sort=list(PHASES), legend=alt.Legend(orient="top", title=None)),
        tooltip=["step:Q", "phase:N", alt.Tooltip("seconds:Q", format=".3f")],
    )  # fmt: skip
