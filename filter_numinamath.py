"""From NuminaMath-1.5 to the training pool: integer answers, no lists glued together, nothing that is in an evaluation set.

Reads NuminaMath-1.5 (its pinned revision under data/sources, or any file in its schema), keeps the word problems that the
grader can grade, and writes data/sft_rl_pool.jsonl (50,000 problems) and data/sft_rl_pool_3200.jsonl (the active subset).
Every row that is left out is counted under the first rule it breaks; the counts add up to the rows read. Same input, arguments
and seed: same bytes.

    python -m gptoss_rl.data fetch numinamath15
    python filter_numinamath.py --exclude data/math45_eval.jsonl data/probe_set_*ood.jsonl data/aime_eval.jsonl
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gptoss_rl.data.contamination import KINDS, Index, Match, Problem, match_rows, match_table, near_duplicates, thresholds
from gptoss_rl.data.files import (
    DataError,
    check_writable,
    fate,
    print_last,
    prompt_row,
    read_lines,
    selection_key,
    sha256,
    write_all,
)
from gptoss_rl.data.lengths import Lengths, load_tokenizer
from gptoss_rl.data.normalise import normalise
from gptoss_rl.data.numina import SUFFIXES, Survivors, survivors
from gptoss_rl.data.readme import readme
from gptoss_rl.data.solve_rates import solve_rates
from gptoss_rl.data.sources import FOLDER, SOURCES, locate, revision_of
from gptoss_rl.prompts import problem_id, render_prompt

POOL_SIZE, ACTIVE_SIZE, SEED = 50_000, 3_200, 42
MIN_TOKENS, MAX_TOKENS = 10, 1_024  # of the rendered prompt's problem, and of the whole prompt (--prompt_max_len)
NUMINA = SOURCES["numinamath15"]
PAIRS_NAME = "contaminated_pairs.jsonl"
EXCLUDED_SOURCES = ["amc_aime"]
JSON_LINES = (".jsonl", ".jsonl.gz")
TOKEN_BATCH = 8_192  # problems
LEARNING_ZONE = (0.05, 0.95)  # pass rates of the base model; outside, most groups of eight have no variance


def bound_by_tokens(result: Survivors, tokenizer_path: Path) -> None:
    """Drop prompts that are too long or too short.

    Raises:
        DataError: there is no tokenizer.
    """
    tokenizer, kept = load_tokenizer(tokenizer_path), []
    frame = len(tokenizer.encode(render_prompt("x"), add_special_tokens=False).ids) - 1
    lengths = Lengths(tokenizer, MIN_TOKENS, MAX_TOKENS - frame)
    with tqdm(total=len(result.rows), desc="prompt lengths", unit="problem", disable=None) as bar:
        for start in range(0, len(result.rows), TOKEN_BATCH):
            part = result.rows[start : start + TOKEN_BATCH]
            for row, verdict in zip(part, lengths.judge([row["problem"] for row in part]), strict=True):
                if verdict is None:
                    kept.append(row)
                else:
                    result.reject(f"prompt too {verdict} (tokens)")
            bar.update(len(part))
    result.rows = kept


def drop_duplicates(result: Survivors) -> None:
    """Keep the first of problems that are equal after normalisation; none when their labels contradict each other.

    Rows get the field `normalised`, which the later rules read.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in tqdm(result.rows, desc="duplicates", unit="problem", disable=None):
        row["normalised"] = normalise(row["problem"])
        groups.setdefault(row["normalised"], []).append(row)
    result.rows = []
    for rows in groups.values():
        if len({row["label"] for row in rows}) > 1:
            result.reject("duplicates that contradict each other", len(rows))
        else:
            result.rows.append(rows[0])
            result.reject("duplicate", len(rows) - 1)


def drop_near_duplicates(result: Survivors) -> None:
    earlier = near_duplicates([row["normalised"] for row in result.rows], [row["label"] for row in result.rows])
    result.reject("near-duplicate", int((earlier >= 0).sum()))
    result.rows = [row for row, position in zip(result.rows, earlier, strict=True) if position < 0]


def evaluation_index(evaluations: list[Path]) -> Index:
    """Raises DataError when one of the files cannot be read, or a row has no problem."""
    texts = [(path.name, problem_text(row, path)) for path in evaluations for row in read_lines(path)]
    return Index(Problem(problem_id(text), text, name) for name, text in texts)


def drop_contaminated(result: Survivors, index: Index) -> list[Match]:
    """Drop what stands in an evaluation set; returns the matches, one for every set that a problem stands in."""
    matches, kept = [], []
    for row in tqdm(result.rows, desc="contamination", unit="problem", disable=None):
        found = []
        if index.may_match(row["normalised"]):
            found = index.matches(Problem(problem_id(row["problem"]), row["problem"], "pool"))
        if found:
            result.reject(f"contaminated ({found[0].kind})")
            matches += found
        else:
            kept.append(row)
    result.rows = kept
    return matches


def problem_text(row: dict[str, Any], path: Path) -> str:
    for key in ("input", "problem", "question"):
        if isinstance(row.get(key), str):
            return row[key]
    raise DataError(f"{path}: a row has no input, problem or question")


def keep_learning_zone(result: Survivors, rates: dict[str, float], band: tuple[float, float]) -> None:
    kept = []
    for row in result.rows:
        rate = rates.get(problem_id(row["problem"]))
        if rate is None:
            result.reject("no solve rate")
        elif not band[0] <= rate <= band[1]:
            result.reject("outside the learning zone")
        else:
            kept.append(row)
    result.rows = kept


def pool_rows(result: Survivors, seed: int, size: int) -> list[dict[str, Any]]:
    """The pool, in an order that depends on seed and texts alone; what is left over is counted."""
    ordered = sorted(result.rows, key=lambda row: selection_key(seed, row["problem"]))
    result.reject("not drawn", max(0, len(ordered) - size))
    made = [prompt_row(r["problem"], str(r["label"]), r["source"], problem_type=r["problem_type"], answer=r["answer"])
            for r in ordered[:size]]  # fmt: skip
    unique = {row["id"]: row for row in made}
    return list(unique.values())


def report(args: argparse.Namespace, result: Survivors, matches: list[Match], kept: int, seconds: float) -> str:
    """What was read, kept and rejected, as it is printed."""
    reasons = Table(title=f"{result.read:,} rows read, {kept:,} kept, {seconds:.1f} s", title_justify="left", box=None)
    reasons.add_column("rejected because")
    reasons.add_column("rows", justify="right")
    for reason, count in sorted(result.reasons.items(), key=lambda item: -item[1]):
        reasons.add_row(reason, f"{count:,}")
    removed = Table(title="what was removed stands in", title_justify="left", box=None)
    for head in ("evaluation set", *KINDS):
        removed.add_column(head, justify="left" if head == "evaluation set" else "right")
    for name, counts in match_table(matches, (path.name for path in args.exclude)).items():
        removed.add_row(name, *(f"{counts[kind]:,}" for kind in KINDS))
    console = Console()
    with console.capture() as captured:
        console.print(reasons)
        if kept < args.pool_size:
            console.print(f"no more are left: the pool has {kept:,} problems, not the {args.pool_size:,} of --pool_size")
        console.print(removed if args.exclude else "compared with no evaluation set: --exclude none")
    return captured.get()


def read(args: argparse.Namespace) -> Survivors:
    """All inputs, through the rules of single rows.

    Raises:
        DataError: an input cannot be read, or no row has a source that --exclude_sources names.
    """
    named = args.exclude_sources is not None
    exclude_sources = args.exclude_sources if named else EXCLUDED_SOURCES
    result = Survivors()
    with tqdm(unit="row", desc="reading", disable=None) as bar:
        for path in args.input:
            part = survivors(path, exclude_sources, args.keep_synthetic, bar)
            result.rows += part.rows
            result.read += part.read
            result.sources |= part.sources
            for reason, count in part.reasons.items():
                result.reject(reason, count)
    absent = sorted(set(exclude_sources) - result.sources)
    if absent:
        sentence = f"no row has the source {', '.join(absent)}; the sources are {', '.join(sorted(result.sources))}"
        if named:
            raise DataError(f"--exclude_sources: {sentence}")
        print(f"filter_numinamath: warning: nothing was excluded by source: {sentence}", file=sys.stderr)
    return result


def build(args: argparse.Namespace) -> tuple[Survivors, list[dict[str, Any]], list[Match]]:
    """All rules, cheap ones first; what can be wrong with a small file is said before the large one is read."""
    rates = solve_rates(args.solve_rates) if args.solve_rates else None
    index = evaluation_index(args.exclude) if args.exclude else None
    result = read(args)
    if str(args.tokenizer) != "none":
        bound_by_tokens(result, args.tokenizer)
    drop_duplicates(result)
    matches = drop_contaminated(result, index) if index else []
    if not args.no_near_duplicates:
        drop_near_duplicates(result)
    if rates is not None:
        keep_learning_zone(result, rates, tuple(args.band))
    pool = pool_rows(result, args.seed, args.pool_size)
    if len(pool) + sum(result.reasons.values()) != result.read:
        raise DataError(f"{result.read} rows read, but {len(pool)} kept and {sum(result.reasons.values())} rejected: a bug")
    return result, pool, matches


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    files = parser.add_argument_group("files")
    files.add_argument("--input", type=Path, nargs="+", default=[],
        help=f"{', '.join(SUFFIXES)}; default: {NUMINA.name} under {FOLDER}")  # fmt: skip
    files.add_argument("--output_dir", type=Path, default=Path("data"))
    files.add_argument("--exclude", type=Path, nargs="+", required=True,
        help="evaluation sets that the pool must not touch, .jsonl or .jsonl.gz; none compares it with nothing")  # fmt: skip
    files.add_argument("--solve_rates", "--solve-rates", type=Path, default=None,
        help="records of eval_baseline.py: keep what the base model solves sometimes; default: off")  # fmt: skip
    files.add_argument("--tokenizer", type=Path, default=Path("models/gpt-oss-20b"),
        help="directory or tokenizer.json; none is off")  # fmt: skip
    rules = parser.add_argument_group("rules")
    rules.add_argument("--exclude_sources", "--exclude-sources", nargs="+", default=None,
        help=f"default: {' '.join(EXCLUDED_SOURCES)}; none is off")  # fmt: skip
    rules.add_argument("--keep_synthetic", action="store_true", help="default: synthetic rows are rejected")
    rules.add_argument("--no_near_duplicates", action="store_true", help="skip the slowest rule")
    rules.add_argument("--band", type=float, nargs=2, default=LEARNING_ZONE, help="pass rates kept with --solve_rates")
    size = parser.add_argument_group("selection")
    size.add_argument("--pool_size", type=int, default=POOL_SIZE, help="problems")
    size.add_argument("--active_size", type=int, default=ACTIVE_SIZE, help="problems of the active subset")
    size.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args(argv)
    if not 1 <= args.active_size <= args.pool_size:
        parser.error(f"--active_size {args.active_size}, --pool_size {args.pool_size}: 1 <= active <= pool is needed")
    if not 0 <= args.band[0] <= args.band[1] <= 1:
        parser.error(f"--band {args.band[0]} {args.band[1]}: two pass rates between 0 and 1 are needed, the lower one first")
    args.exclude = listed("--exclude", args.exclude, parser)
    if args.exclude_sources is not None:
        args.exclude_sources = listed("--exclude_sources", args.exclude_sources, parser)
    wrong = [str(path) for path in args.exclude if not path.name.endswith(JSON_LINES)]
    if wrong:
        parser.error(f"--exclude {' '.join(wrong)}: evaluation sets are read from {' or '.join(JSON_LINES)}")
    return args


def listed(flag: str, values: list[Any], parser: argparse.ArgumentParser) -> list[Any]:
    """The values; nothing for the single value "none"."""
    names = [str(value) for value in values]
    if "none" in names and len(names) > 1:
        parser.error(f"{flag} {' '.join(names)}: none stands alone")
    return [] if names == ["none"] else values


def manifest(args: argparse.Namespace, result: Survivors, matches: list[Match]) -> dict[str, Any]:
    """What the manifests of all outputs say."""
    return {
        "arguments": {
            key: [str(v) for v in value] if isinstance(value, list | tuple) else str(value)
            for key, value in vars(args).items()
            if key != "output_dir"
        },
        "made_by": "filter_numinamath.py",
        "revisions": {path.name: revision_of(path) for path in args.input},
        "inputs": {str(path): sha256(path) for path in [*args.input, *args.exclude, *filter(None, [args.solve_rates])]},
        "seed": args.seed,
        "rows_read": result.read,
        "rejected": dict(sorted(result.reasons.items())),
        "contamination": match_table(matches, (path.name for path in args.exclude)),
        "thresholds": thresholds(),
    }


def main() -> None:
    args, start = parse_arguments(), time.perf_counter()
    try:
        check_writable(args.output_dir)
        args.input = args.input or locate(NUMINA, FOLDER)
        if not args.input:
            raise DataError(
                f"{NUMINA.name} is missing under {FOLDER}; get it with: {NUMINA.command}, or name files with --input"
            )
        result, pool, matches = build(args)
        if len(pool) < args.active_size:
            print(report(args, result, matches, len(pool), time.perf_counter() - start), file=sys.stderr, end="")
            raise DataError(f"only {len(pool)} problems are left, fewer than --active_size {args.active_size}; see the reasons")
        pool_name, active_name = "sft_rl_pool.jsonl", f"sft_rl_pool_{args.active_size}.jsonl"
        each = {pool_name: {"role": "pool"}, active_name: {"role": "train"}, PAIRS_NAME: {"role": "report"}}
        outputs = {args.output_dir / pool_name: pool, args.output_dir / active_name: pool[: args.active_size],
                   args.output_dir / PAIRS_NAME: match_rows(matches)}  # fmt: skip
        write_all(outputs, manifest(args, result, matches), each, readme)
    except (DataError, OSError) as error:
        sys.exit(f"filter_numinamath: {error}")
    except KeyboardInterrupt as stop:
        sys.exit(f"filter_numinamath: interrupted; {fate(stop)}")

    def say() -> None:
        print(report(args, result, matches, len(pool), time.perf_counter() - start), end="")
        print(f"wrote {', '.join(str(path) for path in outputs)}")

    print_last("filter_numinamath", say)


if __name__ == "__main__":
    main()
