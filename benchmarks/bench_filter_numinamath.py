"""filter_numinamath.py at NuminaMath-1.5's size: time and peak memory, and `datasets.Dataset.filter` with its column rules.

A small file in NuminaMath-1.5's schema is repeated to --rows rows; in each copy one common word is spelt differently, so that
copies are neither duplicates nor near-duplicates of each other.

    python benchmarks/bench_filter_numinamath.py --input data/sources/numinamath15.parquet
    python benchmarks/bench_filter_numinamath.py                 # repeats the made-up fixture instead
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from gptoss_rl.data.numina_fixture import frame, make_rows

ROWS = 896_215


def scaled(source: pl.DataFrame, rows: int, path: Path) -> None:
    copies = -(-rows // len(source))
    parts = [
        source.with_columns(pl.col("problem").str.replace_all(r"\bthe\b", f"the{'q' * (k % 9)}{'z' * (k // 9)}"))
        for k in range(copies)
    ]
    pl.concat(parts).head(rows).write_parquet(path, row_group_size=50_000)


def run(*words: object) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of a command."""
    start = time.perf_counter()
    done = subprocess.run(
        ["/usr/bin/env", "bash", "-c", 'exec "$@"', "-", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-1500:])
    peak = re.search(r"peak (\d+) kB", done.stdout)
    return time.perf_counter() - start, int(peak[1]) / 1e6 if peak else float("nan")


WRAP = (
    "import re, sys, runpy; sys.argv = sys.argv[1:]; sys.path.insert(0, '.')\n"
    "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "finally: print('peak', re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], 'kB')\n"
)
DATASETS = """
from datasets import Dataset
from reward_func_em import parse_integer
rows = Dataset.from_parquet(sys.argv[1], cache_dir=sys.argv[2])
def keep(r):
    return (r['question_type'] == 'math-word-problem' and r['problem_is_valid'] == 'Yes' and r['solution_is_valid'] == 'Yes'
            and r['source'] != 'amc_aime' and r['answer'] is not None and parse_integer(r['answer']) is not None)
rows.filter(keep, num_proc=2)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=None)
    parser.add_argument("--rows", type=int, default=ROWS)
    args = parser.parse_args()
    source = pl.read_parquet(args.input) if args.input else frame([row for _, row in make_rows(5000)])
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "numina.parquet"), Path(folder, "out")
        scaled(source, args.rows, path)
        base = [sys.executable, "-c", WRAP, "filter_numinamath.py", "--input", path, "--output_dir", out, "--tokenizer", "none",
                "--keep_synthetic", "--active_size", 100]  # fmt: skip
        print(f"{args.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB")
        for name, words in (("without near-duplicates", ["--no_near_duplicates"]), ("with near-duplicates", [])):
            seconds, peak = run(*base, *words)
            print(f"{name:28s} {seconds:7.1f} s   {peak:5.2f} GB")
        script = Path(folder, "with_datasets.py")
        script.write_text("import sys\n" + DATASETS)
        seconds, peak = run(sys.executable, "-c", WRAP, script, path, Path(folder, "cache"))
        print(
            f"{'datasets.Dataset.filter':28s} {seconds:7.1f} s   {peak:5.2f} GB (main process; column rules and grader alone)"
        )


if __name__ == "__main__":
    main()
