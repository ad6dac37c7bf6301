"""The data files from several Pythons and numbers of threads: the same inputs and seed must give the same bytes.

Makes an environment for each interpreter with the pinned versions of what the data scripts import, runs both scripts there, and
compares every file. Exits with 1 on the first difference.

    python benchmarks/check_same_bytes.py --python python3.10 python3.12 --sources data/sources
    python benchmarks/check_same_bytes.py --python python3.10 python3.12       # the made-up fixture, the filter alone
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gptoss_rl.data.numina_fixture import frame, make_rows

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = ("polars", "pyarrow", "numpy", "datasketch", "tokenizers", "scipy", "rich", "tqdm", "huggingface-hub")
THREADS = (1, 4)


def run(*words: object, **environment: str) -> str:
    done = subprocess.run(
        [str(w) for w in words], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(str(w) for w in words[:4])}: {done.stderr[-1500:]}")
    return done.stdout.strip()


def environment(python: str, folder: Path) -> Path:
    """A virtual environment with the pinned versions; returns its interpreter."""
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", python, folder)
    pins = ROOT / "requirements" / "cpu.txt"
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", folder, "--constraint", pins, *IMPORTED)
    return folder / "bin" / "python"


def make(python: Path, threads: int, sources: Path | None, numina: Path, out: Path, tokenizer: str) -> dict[str, str]:
    """File name -> sha256 of everything that the two scripts write."""
    several = {"POLARS_MAX_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    words: list[object] = ["filter_numinamath.py", "--input", numina, "--tokenizer", tokenizer, "--output_dir", out]
    if sources:
        build = [python, "build_ood_1000.py", "--sources", sources, "--output_dir", out]
        # It ends with 1 when a source is missing, and makes the other sets.
        subprocess.run(build, cwd=ROOT, env={**os.environ, **several}, capture_output=True, check=False)
        held_out = [*out.glob("math45_eval.jsonl"), *out.glob("probe_set_*ood.jsonl"), *out.glob("aime_eval.jsonl")]
        words += ["--exclude", *sorted(held_out), "--keep_synthetic"]
    else:
        words += ["--active_size", 20, "--exclude", "none"]
    run(python, *words, **several)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.jsonl"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", required=True, help="interpreters, by name or path")
    parser.add_argument("--sources", type=Path, default=None, help="with numinamath15.parquet; default: the made-up fixture")
    parser.add_argument("--tokenizer", default="none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work, first = Path(name), None
        numina = args.sources.absolute() / "numinamath15.parquet" if args.sources else work / "numina.parquet"
        if not args.sources:
            frame([row for _, row in make_rows()]).write_parquet(numina)
        for number, python in enumerate(args.python):
            interpreter = environment(python, work / f"venv{number}")
            for threads in THREADS:
                out = work / f"out-{number}-{threads}"
                out.mkdir()
                sources = args.sources.absolute() if args.sources else None
                made = make(interpreter, threads, sources, numina, out, args.tokenizer)
                version = run(interpreter, "-c", "import sys; print(sys.version.split()[0])")
                first = first or made
                same = made == first
                print(f"Python {version}, {threads} thread(s): {len(made)} files, {'the same bytes' if same else 'DIFFERENT'}")
                if not same:
                    sys.exit(f"differing: {', '.join(k for k in made.keys() | first.keys() if made.get(k) != first.get(k))}")


if __name__ == "__main__":
    main()
