"""Evaluations compared, and planned.

python -m gptoss_rl.stats compare A.jsonl B.jsonl     # problem by problem, and in words what may be concluded
python -m gptoss_rl.stats compare runs/NAME/eval.jsonl@0 runs/NAME/eval.jsonl      # a run's evaluation at step 0 and its last
python -m gptoss_rl.stats plan --n 1000               # before measuring: what so many problems can show
python -m gptoss_rl.stats plan --effect 0.02          # how many problems a difference of two points needs
"""

import argparse
import json
import sys
from pathlib import Path

from gptoss_rl.evaluation import Evaluation, EvaluationError, load_evaluation, refuse_different
from gptoss_rl.run_files import read_json
from gptoss_rl.stats import StatsError, compare, report, tier_label, tier_of
from gptoss_rl.stats.power import TYPICAL_DISCORDANT
from gptoss_rl.stats.words import what_a_difference_needs, what_problems_show


def file_and_step(text: str) -> tuple[Path, int | None]:
    """FILE, or FILE@STEP of a run's eval.jsonl."""
    name, at, step = text.rpartition("@")
    return (Path(name), int(step)) if at and step.isdigit() and not Path(text).exists() else (Path(text), None)


def set_name(evaluation: Evaluation) -> str | None:
    """The set that was evaluated, from the summary beside the records or the flags of the run; None when neither is there."""
    path = evaluation.path
    summary, flags = read_json(path.with_suffix(".summary.json")), read_json(path.parent / "config.json")
    return summary.get("eval_set") or (flags.get("eval_dataset") if path.name == "eval.jsonl" else None)


def run_compare(args: argparse.Namespace) -> None:
    both = first, second = [load_evaluation(*one) for one in (args.a, args.b)]
    refuse_different(first, second, allow_unknown=args.allow_unknown_decoding)
    keys, name = sorted(first.shares), set_name(first) or set_name(second)
    steps = ["" if one.step is None else f", step {one.step}" for one in both]
    if not tier_of(len(keys), name).ranks_models:
        for one, step in zip(both, steps, strict=True):
            print(f"{one.path}{step}  {one.score.mean:.1%}  ({one.score.low:.1%} to {one.score.high:.1%}, n = {len(keys)})")
        raise StatsError(f"{len(keys)} problems are for sanity only; models are not ranked by them")
    result = compare([first.shares[k] for k in keys], [second.shares[k] for k in keys])
    if args.json:
        told = {"tier": tier_of(len(keys), name).name, "steps": [one.step for one in both]}
        print(json.dumps({**result.as_json(), **told}))
        return
    for letter, one, step in zip("AB", both, steps, strict=True):
        print(f"{letter} = {one.path}{step}")
    print(f"tier: {tier_label(len(keys), name)}")
    print(report(result, (f"A{steps[0]}", f"B{steps[1]}")))


def run_plan(args: argparse.Namespace) -> None:
    """Sizes and differences that go together, when `--discordant` of the problems differ."""
    if args.n is None and args.effect is None:
        raise StatsError("plan needs --n or --effect")
    if args.n is not None:
        print(what_problems_show(args.n, args.discordant))
    if args.effect is not None:
        print(what_a_difference_needs(args.effect, args.discordant))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m gptoss_rl.stats", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pair = commands.add_parser("compare", help="two evaluations of the same problems")
    for letter in "ab":
        pair.add_argument(
            letter, type=file_and_step, metavar=f"{letter.upper()}.jsonl[@STEP]", help="without STEP a run's last evaluation"
        )
    pair.add_argument("--json", action="store_true", help="print the figures as JSON")
    pair.add_argument(
        "--allow_unknown_decoding",
        "--allow-unknown-decoding",
        action="store_true",
        help="compare records that do not say how they were decoded",
    )
    plan = commands.add_parser("plan", help="what a number of problems can show, and how many a difference needs")
    plan.add_argument("--n", type=int, help="problems")
    plan.add_argument("--effect", type=float, help="difference of two pass rates, e.g. 0.02")
    plan.add_argument(
        "--discordant", type=float, default=TYPICAL_DISCORDANT, help="share of problems on which two models differ"
    )
    args = parser.parse_args(argv)
    try:
        {"compare": run_compare, "plan": run_plan}[args.command](args)
    except (StatsError, EvaluationError) as error:
        sys.exit(f"stats: {error}")


if __name__ == "__main__":
    main()
