"""The report as one HTML file, light and dark after the reader's setting.

Altair writes the charts, the bundled Vega draws them; the file asks the network for nothing.
"""

import html
import json
from collections import Counter
from pathlib import Path

import vl_convert

from gptoss_rl.report.charts import charts, colours
from gptoss_rl.report.samples import samples_section
from gptoss_rl.report.tables import evaluation_table, legend, run_facts
from gptoss_rl.watch.run_view import RunView

# The browser itself refuses every request. Vega compiles its expressions, hence the eval.
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
STYLE = (Path(__file__).parent / "style.css").read_text()
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


class ReportError(RuntimeError):
    """Runs that cannot be reported on together."""


def build(folders: list[Path]) -> str:
    """The whole file; the first run is what the others are compared with.

    Raises:
        FileNotFoundError: a folder is no run.
        ReportError: a folder is given twice.
    """
    runs = dict(zip(distinguishing_names(folders), map(RunView, folders), strict=True))
    drawn = charts(runs)
    figures = "".join(
        f'<figure><figcaption><b>{html.escape(title)}</b> {html.escape(meaning)}</figcaption><div id="{name}"></div></figure>'
        for name, (title, meaning, _) in drawn.items()
    )
    # `</` inside a script would end it.
    data = json.dumps({name: spec for name, (_, _, spec) in drawn.items()}, allow_nan=False).replace("</", "<\\/")
    engine = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    title, first = html.escape(", ".join(runs)), next(iter(runs))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style>'
    )
    facts = "".join(run_facts(name, view) for name, view in runs.items())
    body = (
        f'<main><h1>{title}</h1>{evaluation_table(runs)}{key(runs)}<div class="charts">{figures}</div>'
        f"{samples_section(first, runs[first])}{facts}{legend()}</main>"
        f'<script type="module">{engine}\nconst charts = {data};{BOOT}</script>'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def key(runs: dict[str, RunView]) -> str:
    """One legend for all charts, which stays in sight; none for one run."""
    entries = (
        f'<span><i style="background: {colour}"></i>{html.escape(name)}</span>' for name, colour in colours(runs).items()
    )
    return f'<p class="key">{" ".join(entries)}</p>' if len(runs) > 1 else ""


def distinguishing_names(folders: list[Path]) -> list[str]:
    """The shortest end of each path that no other run has: mostly the folder's name."""
    paths = [folder.resolve() for folder in folders]
    twice = [folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1]
    if twice:
        raise ReportError(f"{twice[0]} is given more than once; a run compared with itself shows nothing")

    def end(path: Path, parts: int) -> str:
        return "/".join(path.parts[1:][-parts:])

    names = []
    for path in paths:
        parts = 1
        while Counter(end(other, parts) for other in paths)[end(path, parts)] > 1:
            parts += 1
        names.append(end(path, parts))
    return names
