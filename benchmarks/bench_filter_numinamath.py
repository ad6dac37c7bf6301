"""filter_numinamath.py at NuminaMath-1.5's size: time and peak memory, and `datasets.Dataset.filter` with the same rules.

A small file in NuminaMath-1.5's schema is repeated to --rows rows; in each copy one common word is spelt differently, so that
copies are neither duplicates nor near-duplicates of each other. The command is the README's: with the tokenizer and with the
evaluation sets, where they are there, and it says what it ran with. Synthetic rows are kept, which makes it longer. Processor
time (user and system, all threads) stands beside the wall clock, because it depends less on what else the machine does.

    python benchmarks/bench_filter_numinamath.py --input data/sources/numinamath15.parquet
    python benchmarks/bench_filter_numinamath.py                 # repeats the made-up fixture instead
"""

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

import polars as pl

from gptoss_rl.data.numina_fixture import frame, make_rows

ROOT = Path(__file__).resolve().parent.parent
ROWS = 896_215
TOKENIZER = "models/gpt-oss-20b"
EXCLUDED = ("data/math45_eval.jsonl", "data/probe_set_*ood.jsonl", "data/aime_eval.jsonl")


def scaled(source: pl.DataFrame, rows: int, path: Path) -> None:
    copies = -(-rows // len(source))
    parts = [
        source.with_columns(pl.col("problem").str.replace_all(r"\bthe\b", f"the{'q' * (k % 9)}{'z' * (k // 9)}"))
        for k in range(copies)
    ]
    pl.concat(parts).head(rows).write_parquet(path, row_group_size=50_000)


def run(*words: object) -> str:
    """Wall-clock seconds, processor seconds and peak resident gigabytes of a command."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr[-1500:])
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = int(re.search(r"peak (\d+) kB", done.stdout)[1]) / 1e6
    return f"{seconds:7.1f} s   {processor:7.1f} s processor   {peak:5.2f} GB"


WRAP = (
    "import re, sys, runpy; sys.argv = sys.argv[1:]; sys.path.insert(0, '.')\n"
    "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "finally: print('peak', re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], 'kB')\n"
)
DATASETS = """
import polars as pl
from datasets import Dataset
from filter_numinamath import EXCLUDED_SOURCES
from gptoss_rl.data.numina import COLUMNS, answer_verdict, column_rules, judge
rules = column_rules(EXCLUDED_SOURCES, True)
def keep(frame):
    judged = judge(frame, rules)
    return [row['reason'] is None and answer_verdict(row['answer'], row['problem'], row['solution'])[1] is None
            for row in judged.iter_rows(named=True)]
rows = Dataset.from_parquet(sys.argv[1], cache_dir=sys.argv[2], columns=list(COLUMNS)).with_format('polars')
kept = rows.filter(keep, batched=True, batch_size=65536, num_proc=2)
print('kept', len(kept))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=None)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--exclude", nargs="+", default=sorted(map(str, chain(*map(ROOT.glob, EXCLUDED)))) or ["none"],
        help="evaluation sets; default: those of the README's command that are there")  # fmt: skip
    there = (ROOT / TOKENIZER / "tokenizer.json").is_file()
    parser.add_argument("--tokenizer", default=TOKENIZER if there else "none", help="default: the 20B's where it is there")
    args = parser.parse_args()
    source = pl.read_parquet(args.input) if args.input else frame([row for _, row in make_rows(5000)])
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "numina.parquet"), Path(folder, "out")
        scaled(source, args.rows, path)
        python = [sys.executable, "-c", WRAP]
        base = [*python, "filter_numinamath.py", "--input", path, "--output_dir", out, "--tokenizer", args.tokenizer,
                "--keep_synthetic", "--active_size", 100, "--exclude", *args.exclude]  # fmt: skip
        print(f"{args.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB, --tokenizer {args.tokenizer}, --exclude "
              f"{' '.join(Path(name).name for name in args.exclude)}")  # fmt: skip
        for name, words in (("without near-duplicates", ["--no_near_duplicates"]), ("with near-duplicates", [])):
            print(f"{name:28s} {run(*base, *words)}", flush=True)
        script = Path(folder, "with_datasets.py")
        script.write_text("import sys\n" + DATASETS)
        alone = run(*python, script, path, Path(folder, "cache"))
        print(f"{'datasets.Dataset.filter':28s} {alone} (memory: main process; rules of single rows alone)")


if __name__ == "__main__":
    main()
