"""Evaluation sets from public competition problems: out of the pool's distribution, apart from it, the same bytes every time.

Writes, under --output_dir:

    math45_train.jsonl, math45_eval.jsonl    MATH levels 4 and 5 with a boxed answer: 5,224 and 1,306, with no problem of one
                                             in the other in any form; *_integer.jsonl: those that the grader can grade
    probe_set_1000_ood.jsonl                 integer answers: competitions, and math45_eval
    probe_set_200_ood.jsonl                  202 more of the same, for evaluations during training
    probe_set_200.jsonl                      200 of the pool (in distribution), not of its active subset
    aime_eval.jsonl                          18 problems of AIME 2024
    apex_shortlist.jsonl                     MathArena's Apex shortlist, when it is there

Every input is a local file or a pinned revision of the hub (gptoss_rl/data/sources.py); one that is missing is named with
the command that gets it, and the sets that do not need it are still made. Nothing is drawn at random: problems are ordered
by a hash of seed and text.

First without a pool, then the pool with these sets excluded, then again for the in-distribution set and as a check:

    python -m gptoss_rl.data fetch
    python build_ood_1000.py
    python filter_numinamath.py --exclude data/math45_eval.jsonl data/probe_set_*ood.jsonl data/aime_eval.jsonl
    python build_ood_1000.py --pool data/sft_rl_pool.jsonl --active data/sft_rl_pool_3200.jsonl
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_rl.data.contamination import Match, Problem, families, find_matches, match_rows, match_table, thresholds
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
from gptoss_rl.data.normalise import normalise
from gptoss_rl.data.numina import boxed_list
from gptoss_rl.data.readme import readme
from gptoss_rl.data.sources import FOLDER, SOURCES, locate, read_rows, revision_of
from reward_func_em import last_box, parse_integer

SEED = 42
PAIRS_NAME = "ood_in_training.jsonl"
MATH45_TRAIN, MATH45_EVAL, OOD, OOD_SMALL, ID_SIZE, AIME_SIZE = 5_224, 1_306, 1_000, 202, 200, 18
NEEDED = ("math_train", "math_test", "aime24", "aime25", "amc23", "olympiadbench", "apex_shortlist")
SINGLE_TEXT = {"modality": "Text-only", "language": "English", "is_multiple_answer": False}  # OlympiadBench's fields
COMPETITIONS = ("aime25", "amc23", "olympiadbench")


@dataclass
class Inputs:
    """Rows of every source that is there, and what to say about the others."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    revisions: dict[str, str | None] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def has(self, *names: str) -> bool:
        return all(name in self.rows for name in names)


def load(folder: Path) -> Inputs:
    """Read every source that is there.

    Raises:
        DataError: one is damaged or empty.
    """
    inputs = Inputs()
    for name in NEEDED:
        source = SOURCES[name]
        files = locate(source, folder)
        if not files:
            inputs.missing.append(f"{name} is missing under {folder}; get it with: {source.command}")
            continue
        inputs.rows[name] = [row for path in files for row in read_rows(path)]
        if not inputs.rows[name]:
            raise DataError(f"{', '.join(map(str, files))}: empty")
        inputs.files += files
        inputs.revisions[name] = revision_of(files[0])
    return inputs


def text_of(row: dict[str, Any]) -> str:
    """Raises DataError when the row has no problem."""
    for key in ("problem", "question", "input"):
        if isinstance(row.get(key), str) and row[key].strip():
            return row[key]
    raise DataError(f"a row has no problem, question or input: {str(row)[:120]}")


def answer_of(row: dict[str, Any]) -> str | None:
    """The answer as text: the boxes of a solution that lists several, the field, one of a list of one, or the last box."""
    if isinstance(row.get("solution"), str) and (boxes := boxed_list(text_of(row), row["solution"])):
        return ", ".join(boxes)
    answer = next((row[key] for key in ("answer", "final_answer", "expected_answer") if row.get(key) is not None), None)
    if isinstance(answer, list):
        answer = answer[0] if len(answer) == 1 else None
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if answer is None and isinstance(row.get("solution"), str):
        answer = last_box(row["solution"])
    return None if answer is None or not str(answer).strip() else str(answer).strip()


def integer_rows(rows: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """Prompt rows of the problems whose answer is one integer; of OlympiadBench only text-only English open questions."""
    made = []
    for row in rows:
        if any(row.get(key, wanted) != wanted for key, wanted in SINGLE_TEXT.items()):
            continue
        answer = answer_of(row)
        label = parse_integer(answer) if answer else None
        if label is not None:
            made.append(prompt_row(text_of(row), str(label), source))
    if not made:
        raise DataError(f"{source}: none of {len(rows)} rows has an integer answer; its fields are {', '.join(rows[0])}")
    return made


def unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of rows that are equal after normalisation."""
    return list({normalise(row["input"]): row for row in reversed(rows)}.values())[::-1]


def ordered(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: selection_key(seed, normalise(row["input"])))


def math45(inputs: Inputs, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[list[str]]]:
    """MATH levels 4 and 5 with a boxed answer, as (train, evaluation), and the problems that stand there twice.

    Problems that repeat each other, exactly, in part or nearly, stay together on one side: MATH has many that differ in a
    number or a word, and one that stands in both of its own splits.
    """
    rows = []
    for split in ("math_train", "math_test"):
        for number, row in enumerate(inputs.rows[split]):
            answer = answer_of(row)
            if row.get("level") in ("Level 4", "Level 5") and answer:
                label = parse_integer(answer)
                made = prompt_row(text_of(row), str(label) if label is not None else answer, f"{split}/{row['level'][-1]}",
                                  integer=label is not None, original=row.get("unique_id", f"{split}/{number}"))  # fmt: skip
                rows.append(made)
    rows = ordered(rows, seed)
    train, held_out = [], []
    for family in families([Problem(row["id"], row["input"], row["source"]) for row in rows]):
        side = held_out if len(held_out) + len(family) <= MATH45_EVAL else train
        side += [rows[position] for position in family]
    same: dict[str, list[str]] = {}
    for row in rows:
        same.setdefault(normalise(row["input"]), []).append(row["original"])
    return train, held_out, [originals for originals in same.values() if len(originals) > 1]


def out_of_pool(rows: list[dict[str, Any]], pool: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Match]]:
    """Rows that stand in training data in no form, and the matches of the others."""
    matches = find_matches((Problem(r["id"], r["input"], r["source"]) for r in rows),
                           (Problem(r["id"], r["input"], "pool") for r in pool))  # fmt: skip
    matched = {match.pool_id for match in matches}
    return [row for row in rows if row["id"] not in matched], matches


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Rows of a prompt file, as filter_numinamath.py writes them.

    Raises:
        DataError: it cannot be read, or a row is no prompt.
    """
    rows = read_lines(path)
    for number, row in enumerate(rows, start=1):
        lacking = [key for key in ("id", "input", "label", "source") if not isinstance(row.get(key), str)]
        if lacking:
            raise DataError(f"{path}, row {number}: no text in {', '.join(lacking)}; not written by filter_numinamath.py")
    return rows


def in_distribution(args: argparse.Namespace, pool: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Problems of the pool that are in its active subset in no form.

    Raises:
        DataError: the active subset is not of this pool.
    """
    active = read_prompts(args.active)
    taken = {row["id"] for row in active}
    foreign = taken - {row["id"] for row in pool}
    if foreign:
        raise DataError(f"{len(foreign)} problems of {args.active} are not in {args.pool}, first {min(foreign)}")
    rest = ordered([row for row in pool if row["id"] not in taken], args.seed)
    apart, _ = out_of_pool(rest[: 2 * ID_SIZE], active)
    return [{**row, "in_distribution": True} for row in apart[:ID_SIZE]]


def build(args: argparse.Namespace, inputs: Inputs) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any], list[Match]]:
    """File name -> rows, counts for the manifest, and what was left out because the pool has it.

    Raises:
        DataError: a source has too few problems for its set.
    """
    sets: dict[str, list[dict[str, Any]]] = {}
    counts: dict[str, Any] = {}
    matches: list[Match] = []
    pool = read_prompts(args.pool) if args.pool else []
    if inputs.has("math_train", "math_test"):
        sets["math45_train.jsonl"], sets["math45_eval.jsonl"], counts["math45_twice"] = math45(inputs, args.seed)
        for side in ("train", "eval"):
            gradable = [row for row in sets[f"math45_{side}.jsonl"] if row["integer"]]
            sets[f"math45_{side}_integer.jsonl"] = unique(gradable)
    if "math45_eval.jsonl" in sets and inputs.has(*COMPETITIONS):
        candidates = [row for name in COMPETITIONS for row in integer_rows(inputs.rows[name], name)]
        candidates += [prompt_row(r["input"], r["label"], r["source"]) for r in sets["math45_eval_integer.jsonl"]]
        candidates, matches = out_of_pool(unique(candidates), pool + sets["math45_train.jsonl"])
        drawn = ordered(candidates, args.seed)
        counts["ood_candidates"] = len(candidates)
        sets["probe_set_1000_ood.jsonl"] = drawn[:OOD]
        sets["probe_set_200_ood.jsonl"] = drawn[OOD : OOD + OOD_SMALL]
    if inputs.has("aime24"):
        sets["aime_eval.jsonl"] = ordered(unique(integer_rows(inputs.rows["aime24"], "aime24")), args.seed)[:AIME_SIZE]
    if inputs.has("apex_shortlist"):
        sets["apex_shortlist.jsonl"] = [
            prompt_row(text_of(r), answer_of(r) or "", "apex_shortlist", integer=parse_integer(answer_of(r) or "") is not None)
            for r in inputs.rows["apex_shortlist"]
        ]
    if args.active:
        sets["probe_set_200.jsonl"] = in_distribution(args, pool)
    check_sizes(args, sets)
    return sets, counts, matches


def check_sizes(args: argparse.Namespace, sets: dict[str, list[dict[str, Any]]]) -> None:
    """Raises DataError for a set that has not the size it is known by."""
    math = "math_train and math_test"
    for name, size, origin in (
        ("math45_train", MATH45_TRAIN, math),
        ("math45_eval", MATH45_EVAL, math),
        ("probe_set_1000_ood", OOD, f"{', '.join(COMPETITIONS)}, {math}"),
        ("probe_set_200_ood", OOD_SMALL, f"{', '.join(COMPETITIONS)}, {math}"),
        ("aime_eval", AIME_SIZE, "aime24"),
        ("probe_set_200", ID_SIZE, f"{args.pool} without {args.active}"),
    ):
        rows = sets.get(f"{name}.jsonl")
        if rows is not None and len(rows) != size:
            raise DataError(f"{name} would have {len(rows):,} problems, not {size:,}; they come from {origin}: is it whole?")


def about(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest of one file says besides: its role, whether the grader can grade it, what stands in it twice."""
    counts = Counter(normalise(row["input"]) for row in rows)
    twice = sorted({row["id"] for row in rows if counts[normalise(row["input"])] > 1})
    roles = {"math45_train": "math45", "math45_eval": "math45_eval", "probe_set_200.": "in_distribution"}
    role = next((role for start, role in roles.items() if name.startswith(start)), "evaluation")
    return {"role": role, "integer_labels": all(row.get("integer", True) for row in rows), "duplicates": twice}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=Path, default=FOLDER, help="folder of the input files")
    parser.add_argument("--pool", type=Path, default=None,
        help="the training pool, which the OOD sets must not touch; default: none yet")  # fmt: skip
    parser.add_argument("--active", type=Path, default=None,
        help="its active subset, which the in-distribution set must not touch; default: no in-distribution set")  # fmt: skip
    parser.add_argument("--output_dir", type=Path, default=Path("data"))
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    if args.active and not args.pool:
        parser.error("--active is a part of a pool: name it with --pool")
    return args


def main() -> None:
    args = parse_arguments()
    try:
        check_writable(args.output_dir)
        inputs = load(args.sources)
        sets, counts, matches = build(args, inputs)
        if not sets:
            raise DataError("; ".join(inputs.missing))
        files = [*inputs.files, *filter(None, [args.pool, args.active])]
        meta = {
            "made_by": "build_ood_1000.py",
            "arguments": {"seed": args.seed},
            "inputs": {str(path): sha256(path) for path in files},
            "revisions": inputs.revisions,
            "seed": args.seed,
            "counts": counts,
            "left_out_because_in_training_data": match_table(matches),
            "thresholds": thresholds(),
        }
        outputs = {args.output_dir / name: rows for name, rows in sets.items()}
        each = {name: about(name, rows) for name, rows in sets.items()}
        outputs[args.output_dir / PAIRS_NAME] = match_rows(matches)
        each[PAIRS_NAME] = {"role": "report"}
        write_all(outputs, meta, each, readme)
    except (DataError, OSError) as error:
        sys.exit(f"build_ood_1000: {error}")
    except KeyboardInterrupt as stop:
        sys.exit(f"build_ood_1000: interrupted; {fate(stop)}")

    def say() -> None:
        for path, rows in outputs.items():
            print(f"{path}  {len(rows):,} problems")
        if counts.get("math45_twice"):
            print(f"in MATH twice, kept on one side: {'; '.join(' and '.join(names) for names in counts['math45_twice'])}")

    print_last("build_ood_1000", say)
    for sentence in inputs.missing:
        print(f"not made: {sentence}", file=sys.stderr)
    sys.exit(1 if inputs.missing else 0)


if __name__ == "__main__":
    main()
