"""MathArena's Apex shortlist: several samples a problem, their mean as the score, answers that need not be integers.

Whatever reward_func_em.py, the one grader, reads as a number in both answer and label is graded by it, exactly. The rest is
graded by math-verify; where both have an opinion and disagree, the response is written to disagreements.jsonl and the exact
grader counts: 0.33333333 is not 1/3. A response that was cut off is wrong. responses.jsonl holds what was said, graded.jsonl
the verdicts, and is what `python -m gptoss_rl.stats compare` takes.

    python eval_apex.py --model_path models/gpt-oss-20b --eval_set data/apex_shortlist.jsonl --n_samples 16
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import reward_func_em
from gptoss_rl.errors import GateError
from gptoss_rl.evaluation import (
    Decoding,
    EvaluationError,
    Problem,
    Served,
    add_decoding,
    evaluate,
    header_path,
    prepare,
    read_rows,
    summarise,
)
from gptoss_rl.prompts import problem_id
from gptoss_rl.run_files import read_json_lines, write_json_atomically, write_text_atomically
from gptoss_rl.stats import tier_label


def read_set(path: Path) -> list[Problem]:
    """The problems, with labels that need not be integers.

    Raises:
        EvaluationError: the file cannot be used, or neither grader can read a label.
    """
    from math_verify import parse

    try:
        rows = read_rows(path)
    except EvaluationError as error:
        raise EvaluationError(f"{error}; build_ood_1000.py makes the shortlist") from error
    problems = []
    for number, row in enumerate(rows, start=1):
        label = row["label"]
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise EvaluationError(f"{path}, row {number}: label {label!r:.100} is neither text nor an integer")
        label = str(label).strip()
        # What math-verify cannot parse it hands back as text.
        if reward_func_em.read_number(label) is None and all(isinstance(part, str) for part in parse(f"${label}$")):
            raise EvaluationError(f"{path}, row {number}: neither grader can read the label {label!r:.100}")
        problems.append(Problem(problem_id(row["input"]), row["input"], label))
    return problems


def verified(answer: str | None, gold: str) -> bool:
    """math-verify's opinion; a response without an answer is wrong."""
    from math_verify import parse, verify

    if answer is None:
        return False
    return bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))


def exact(answer: str | None, gold: str) -> bool | None:
    """The exact grader's opinion; None where it has none. To an integer everything that is no number is wrong."""
    value, wanted = None if answer is None else reward_func_em.read_number(answer), reward_func_em.read_number(gold)
    if wanted is None or (value is None and wanted.denominator != 1):
        return None
    return value == wanted


def grade_all(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows with their final verdicts, and those on whose answers two graders disagree."""
    graded, disagreements = [], []
    for row in rows:
        answer, label = row["answer"], row["label"]
        first, second = exact(answer, label), verified(answer, label)
        right = second if first is None else first
        correct = right and row["finish_reason"] != "length"
        graded.append({**row, "correct": correct, "reward": float(correct)})
        if first is not None and first != second:
            disagreements.append({"id": row["id"], "answer": answer, "label": label, "exact": first, "math_verify": second})
    return graded, disagreements


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", type=Path, required=True, help="a model directory; with --adapter the adapter's base")
    parser.add_argument("--adapter", type=Path, default=None, help="a LoRA on --model_path; default: none")
    parser.add_argument("--eval_set", type=Path, default=Path("data/apex_shortlist.jsonl"),
        help="JSON lines with input and label; default: data/apex_shortlist.jsonl")  # fmt: skip
    add_decoding(parser, temperature=1.0, n_samples=16)
    parser.add_argument("--output", type=Path, default=Path("evals/apex_shortlist"),
        help="folder of this model's files; default: evals/apex_shortlist")  # fmt: skip
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    try:
        problems = read_set(args.eval_set)
        decoding = Decoding.of(args.temperature, args.max_tokens, args.n_samples, args.reasoning_effort)
        records, graded_file = args.output / "responses.jsonl", args.output / "graded.jsonl"
        served = Served("apex", args.model_path, args.adapter)
        job = prepare(served, problems, decoding, records, tp_size=args.tp, seed=args.seed)
        if job.unsure:
            print(f"eval_apex: warning: {job.unsure}", file=sys.stderr)
        evaluate(job)
        graded, disagreements = grade_all(list(read_json_lines(records)))
        write_rows(graded_file, graded)
        write_json_atomically(header_path(graded_file), job.header)
        write_rows(args.output / "disagreements.jsonl", disagreements)
        summary = summarise(served.name, graded_file, args.eval_set)
        write_json_atomically(args.output / "summary.json", {**summary, "disagreements": len(disagreements)})
    except (EvaluationError, GateError, OSError) as error:
        sys.exit(f"eval_apex: {error}")
    except KeyboardInterrupt:
        sys.exit("eval_apex: interrupted; the same command goes on where it stopped")
    s = summary["score"]
    print(f"{s['mean']:.1%} ({s['low']:.1%} to {s['high']:.1%}) over {len(problems)} problems x {args.n_samples} samples")
    print(f"tier: {tier_label(len(problems), str(args.eval_set))}")
    print(f"the two graders disagree on {len(disagreements)} responses")


if __name__ == "__main__":
    main()
