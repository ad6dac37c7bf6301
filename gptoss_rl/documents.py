"""The tables of README.md and docs/ that are made from the registries: `python -m gptoss_rl.documents` writes them.

A table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. That of patches is
`apply_patches.sh --write-table`'s.
"""

from collections.abc import Iterable
from pathlib import Path

from gptoss_rl.errors import GATES
from gptoss_rl.metrics import METRICS, STAMPS
from gptoss_rl.run_files import write_text_atomically

ROOT = Path(__file__).resolve().parent.parent


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; `|` in a cell is escaped."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("| --- ", "|---").replace("|--- |", "|---|")


def metric_table() -> str:
    """What a line of metrics.jsonl may hold."""
    rows = [(f"`{name}`", metric.unit, metric.meaning) for name, metric in (STAMPS | METRICS).items()]
    return markdown(("key", "unit", "meaning"), rows)


def gate_table() -> str:
    """What stops a run."""
    return markdown(("gate", "when", "stops when"), [(name, gate.when, gate.stops_when) for name, gate in GATES.items()])


# Document -> name of a table in it -> what makes it.
TABLES = {"README.md": {"gate-table": gate_table}, "docs/runs.md": {"metric-table": metric_table}}


def current(document: str, text: str) -> str:
    """A document with its tables made anew."""
    for name, make in TABLES[document].items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    for document in TABLES:
        path = ROOT / document
        write_text_atomically(path, current(document, path.read_text()))


if __name__ == "__main__":
    main()
