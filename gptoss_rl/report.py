"""A run as one HTML file that needs no network, or several runs side by side.

    python -m gptoss_rl.report runs/NAME                    # writes runs/NAME/report.html
    python -m gptoss_rl.report runs/A runs/B --output compare.html

Charts are Vega-Lite (Altair writes them, the bundled Vega draws them): every curve with its points under the pointer,
light and dark after the reader's setting. Comparisons of evaluations are paired, problem by problem.
"""

import argparse
import html
import json
import sys
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from gptoss_rl.alerts import alerts
from gptoss_rl.metrics import METRICS
from gptoss_rl.run_files import read_json_lines, write_text_atomically
from gptoss_rl.run_view import PHASES, RunView, paired_results
from gptoss_rl.stats import wilson
from gptoss_rl.summary import paired_p_value

CURVES = (
    ("reward/mean", "Reward"),
    ("policy/entropy", "Entropy of trained tokens"),
    ("parity/kl", "KL of sampler and trainer"),
    ("optimizer/gradient_norm", "Gradient norm"),
    ("optimizer/learning_rate", "Learning rate"),
    ("rollout/response_tokens_mean", "Response length"),
    ("rollout/truncated", "Truncated responses"),
    ("batch/skipped", "Samples of groups without variance"),
)
MAX_POINTS = 600  # of a curve; longer ones are thinned, so that the file stays small
SAMPLES_SHOWN = 6
# The browser itself refuses every request. Vega compiles its expressions, hence the eval.
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
STYLE = (Path(__file__).parent / "report.css").read_text()
BOOT = """
const dark = matchMedia('(prefers-color-scheme: dark)');
function draw() {
  const ink = dark.matches ? '#d7dae0' : '#24292f', grid = dark.matches ? '#343a43' : '#e4e7eb';
  const config = {background: null, view: {stroke: null}, axis: {labelColor: ink, titleColor: ink, gridColor: grid,
    domainColor: grid, tickColor: grid}, legend: {labelColor: ink, titleColor: ink}, font: 'system-ui, sans-serif'};
  for (const [id, spec] of Object.entries(charts)) vegaEmbed('#' + id, spec, {actions: false, renderer: 'svg', config});
}
dark.addEventListener('change', draw);
draw();
"""


def thinned(rows: list[Any], limit: int = MAX_POINTS) -> list[Any]:
    """At most `limit` rows, evenly taken, the last among them."""
    if len(rows) <= limit:
        return rows
    return [rows[(i + 1) * len(rows) // limit - 1] for i in range(limit)]


def curve(runs: list[RunView], key: str) -> alt.Chart | None:
    """One metric of every run over steps; None when no run has it."""
    rows = [
        {"step": s["step"], "value": s[key], "run": view.folder.name}
        for view in runs
        for s in thinned(view.steps)
        if isinstance(s.get(key), float) and abs(s[key]) != float("inf")
    ]
    if not rows:
        return None
    chart = alt.Chart(alt.Data(values=rows), width="container", height=170)
    return chart.mark_line(point=alt.OverlayMarkDef(size=10), strokeWidth=1.5).encode(
        x=alt.X("step:Q", title="step"),
        y=alt.Y("value:Q", title=METRICS[key].unit, scale=alt.Scale(zero=False)),
        tooltip=[alt.Tooltip("run:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4g")],
        **({"color": alt.Color("run:N", legend=alt.Legend(orient="top", title=None))} if len(runs) > 1 else {}),
    )


def evaluation_chart(runs: list[RunView]) -> alt.LayerChart | None:
    """Greedy pass@1 over steps with 95 % Wilson intervals."""
    rows = []
    for view in runs:
        for entry in view.refresh_evaluations():
            low, high = wilson(entry["solved"], entry["n"])
            share = entry["solved"] / entry["n"]
            rows.append({"run": view.folder.name, "step": entry["step"], "pass@1": share, "low": low, "high": high})
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows), width="container", height=200)
    colour = {"color": alt.Color("run:N", legend=alt.Legend(orient="top", title=None))} if len(runs) > 1 else {}
    y = alt.Y("low:Q", title="pass@1", scale=alt.Scale(domain=[0, 1]))
    bars = base.mark_errorbar(ticks=True).encode(x="step:Q", y=y, y2="high:Q", **colour)
    tooltip = [alt.Tooltip("run:N"), "step:Q", *(alt.Tooltip(f"{k}:Q", format=".1%") for k in ("pass@1", "low", "high"))]
    line = base.mark_line(point=True).encode(x="step:Q", y=alt.Y("pass@1:Q"), tooltip=tooltip, **colour)
    return alt.layer(bars, line)


def phase_chart(runs: list[RunView]) -> alt.Chart | None:
    """Seconds of each phase, stacked, over steps; of the first run."""
    rows = [
        {"step": s["step"], "seconds": s.get(f"time/{phase}", 0.0), "phase": phase}
        for s in thinned(runs[0].steps, 200)
        for phase in PHASES
    ]
    if not rows:
        return None
    chart = alt.Chart(alt.Data(values=rows), width="container", height=170).mark_area()
    return chart.encode(
        x=alt.X("step:Q", title="step"), y=alt.Y("seconds:Q", stack=True, title="s"),
        color=alt.Color("phase:N", sort=list(PHASES), legend=alt.Legend(orient="top", title=None)),
        tooltip=["step:Q", "phase:N", alt.Tooltip("seconds:Q", format=".3f")],
    )  # fmt: skip


def charts(runs: list[RunView]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """id -> (title, one-line meaning, Vega-Lite specification)."""
    found: dict[str, tuple[str, str, Any]] = {}
    evaluation = evaluation_chart(runs)
    if evaluation:
        found["evaluation"] = ("Greedy pass@1", "held-out problems, with 95 % Wilson intervals", evaluation)
    for key, title in CURVES:
        chart = curve(runs, key)
        if chart:
            found[key.replace("/", "-")] = (title, METRICS[key].meaning, chart)
    phases = phase_chart(runs)
    if phases:
        found["phases"] = ("Seconds a step", f"by phase, {runs[0].folder.name}", phases)
    return {name: (title, meaning, chart.to_dict()) for name, (title, meaning, chart) in found.items()}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Cells are text and are escaped."""
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def evaluation_table(runs: list[RunView]) -> str:
    """Every evaluation against its run's first, and the last ones of runs against each other."""
    rows, lasts = [], []
    for view in runs:
        results = paired_results(view.folder)
        for step in sorted(results):
            rows.append(
                [view.folder.name, f"step {step}", *compared(results[min(results)], results[step], step != min(results))]
            )
        if results:
            lasts.append((view.folder.name, results[max(results)]))
    for name, last in lasts[1:]:
        if set(last) == set(lasts[0][1]):
            rows.append([name, f"against {lasts[0][0]}", *compared(lasts[0][1], last, True)])
        else:
            rows.append([name, f"against {lasts[0][0]}", "", "not the same problems: not compared", "", ""])
    return table(["run", "evaluation", "n", "pass@1", "gained / lost", "p (exact McNemar)"], rows) if rows else ""


def compared(before: dict[str, bool], after: dict[str, bool], paired: bool) -> list[str]:
    solved, n = sum(after.values()), len(after)
    low, high = wilson(solved, n)
    cells = [str(n), f"{solved / n:.1%} ({low:.1%} to {high:.1%})"]
    if not paired:
        return [*cells, "", ""]
    if set(before) != set(after):
        return [*cells, "other problems", ""]
    gained, lost, p_value = paired_p_value(before, after)
    return [*cells, f"{gained} / {lost}", f"{p_value:.2g}"]


def problem_text(record: dict[str, Any]) -> str:
    from gptoss_rl.prompts import problem_of

    return problem_of(record["prompt"]) or record["prompt"]


def samples_section(view: RunView) -> str:
    """The same held-out problems before and after, those that changed first, with the answer marked."""
    records = list(read_json_lines(view.folder / "eval.jsonl"))
    if not records:
        return ""
    first, last = min(r["step"] for r in records), max(r["step"] for r in records)
    before = {r["id"]: r for r in records if r["step"] == first}
    after = {r["id"]: r for r in records if r["step"] == last}
    shared = [i for i in before if i in after]
    changed = [i for i in shared if before[i]["correct"] != after[i]["correct"]]
    chosen = (changed + [i for i in shared if i not in set(changed)])[:SAMPLES_SHOWN]
    parts = []
    for i in chosen:
        cells = "".join(sample_cell(f"step {r['step']}", r) for r in (before[i], after[i]))
        label = html.escape(str(before[i]["label"]))
        parts.append(
            f'<h4>{html.escape(problem_text(before[i]))} <small>label {label}</small></h4><div class="pair">{cells}</div>'
        )
    return f"<h2>Held-out problems before and after</h2>{''.join(parts)}"


def sample_cell(title: str, record: dict[str, Any]) -> str:
    text, answer = html.escape(record["response"]), record["answer"]
    if answer:
        mark = html.escape(answer)
        start = text.rfind(mark)
        text = text[:start] + f"<mark>{mark}</mark>" + text[start + len(mark) :] if start >= 0 else text
    verdict = "right" if record["correct"] else "wrong"
    return f'<div><b class="{verdict}">{title}: {verdict}</b><pre>{text}</pre></div>'


def run_facts(view: RunView) -> str:
    """State, incidents, environment and command of one run."""
    state = view.state()
    incidents = [*alerts(view.steps, state), *view.messages(10)]
    environment = view.read_json("environment.json")
    versions = environment.get("versions", {})
    facts = [
        ("state", f"{state}, step {view.steps[-1]['step'] if view.steps else 0}"),
        ("commit", f"{environment.get('git_commit', 'unknown')}{' with local changes' if environment.get('git_diff') else ''}"),
        ("patch stack", str(environment.get("patch_stack", "unknown"))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("hardware", f"{environment.get('cpus', '?')} CPUs; {', '.join(environment.get('gpus') or ['no GPU'])}"),
    ]
    sync = view.last_sync()
    if sync:
        proof = f"{sync['modules']} modules proven by {sync['workers']} workers of {sync['engines']} engines"
        facts.append(("last sync", f"policy version {sync['policy_version']}, {proof}, {sync['mode']}"))
    listed = "".join(f"<li>{html.escape(text[:600])}</li>" for text in incidents) or "<li>none</li>"
    command = view.folder / "command.txt"
    text = html.escape(command.read_text()) if command.exists() else "unknown"
    return (
        f"<h2>{html.escape(view.folder.name)}</h2>{table(['', ''], [list(f) for f in facts])}"
        f"<h3>Gates and incidents</h3><ul>{listed}</ul><details><summary>Command</summary><pre>{text}</pre></details>"
    )


def legend() -> str:
    """Generated from the registry of metrics."""
    rows = [[name, metric.unit, metric.meaning] for name, metric in METRICS.items()]
    return f"<details><summary>What every metric means</summary>{table(['key', 'unit', 'meaning'], rows)}</details>"


def build(folders: list[Path]) -> str:
    """The whole file.

    Raises:
        FileNotFoundError: a folder is no run.
    """
    runs = [RunView(folder) for folder in folders]
    drawn = charts(runs)
    figures = "".join(
        f'<figure><figcaption><b>{html.escape(title)}</b> {html.escape(meaning)}</figcaption><div id="{name}"></div></figure>'
        for name, (title, meaning, _) in drawn.items()
    )
    # `</` inside a script would end it.
    data = json.dumps({name: spec for name, (_, _, spec) in drawn.items()}).replace("</", "<\\/")
    engine = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    title = html.escape(", ".join(view.folder.name for view in runs))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style>'
    )
    body = (
        f'<main><h1>{title}</h1>{evaluation_table(runs)}<div class="charts">{figures}</div>'
        f"{samples_section(runs[0])}{''.join(run_facts(view) for view in runs)}{legend()}</main>"
        f'<script type="module">{engine}\nconst charts = {data};{BOOT}</script>'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run directories; the first is what the others are compared with")
    parser.add_argument("--output", type=Path, help="default: report.html in the first run")
    args = parser.parse_args()
    output = args.output or args.runs[0] / "report.html"
    try:
        write_text_atomically(output, build(args.runs))
    except FileNotFoundError as error:
        sys.exit(f"report: {error}")
    print(f"wrote {output} ({output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
