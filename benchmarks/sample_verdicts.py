"""Random rows that the filter keeps, and random rows that it rejects, to be read by a person.

The rules of single rows only; duplicates and contamination have their own files. A sample depends on file and seed alone, so
that what was read can be read again.

    python benchmarks/sample_verdicts.py --input data/sources/numinamath15.parquet --seed 2026
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from filter_numinamath import EXCLUDED_SOURCES
from gptoss_rl.data.files import selection_key
from gptoss_rl.data.numina import answer_verdict, batches, column_rules, judge

STATED = ("not a word problem", "problem not valid", "solution not valid", "synthetic", "excluded source")  # columns say so


def verdicts(path: Path, keep_synthetic: bool) -> list[tuple[str | None, dict[str, Any]]]:
    """(reason or None, row) of every row whose verdict is not simply what a column states."""
    rules, found = column_rules(EXCLUDED_SOURCES, keep_synthetic), []
    for frame in batches(path):
        for row in judge(frame, rules).iter_rows(named=True):
            if row["reason"] not in STATED:
                reason = row["reason"] or answer_verdict(row["answer"], row["problem"], row["solution"])[1]
                found.append((reason, row))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=50, help="rows kept, and as many rejected")
    parser.add_argument("--keep_synthetic", action="store_true")
    args = parser.parse_args()
    seen = {row["problem"]: (reason, row) for reason, row in verdicts(args.input, args.keep_synthetic)}  # each text once
    rows = sorted(seen.values(), key=lambda item: selection_key(args.seed, item[1]["problem"]))
    for name, chosen in (("KEPT", [r for r in rows if r[0] is None]), ("REJECTED", [r for r in rows if r[0] is not None])):
        for number, (reason, row) in enumerate(chosen[: args.size], start=1):
            print(f"{name} {number}{f': {reason}' if reason else ''} | answer {row['answer']!r}\n    {row['problem']!r}")


if __name__ == "__main__":
    main()
