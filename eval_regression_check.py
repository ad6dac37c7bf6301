"""In-training against post-hoc evaluation of one checkpoint, problem by problem.

Takes a run and finds the rest: the problems and prompts of its last evaluation, its decoding, its base model and adapter. The
adapter is served as in training and the same evaluation is made twice. Compared are label, answer and verdict of every problem,
and each verdict with what the grader says of the recorded response now; responses that differ in a token are listed too.

Two post-hoc evaluations need not agree: requests share batches as they come, and sums are rounded in another order. A problem
on which they disagree says nothing about training and is left out; a difference on any other problem counts, however many were
left out. Exits with 1 and the list when more than --tolerance count, or a stored verdict is not the grader's.

    python eval_regression_check.py runs/NAME
    python eval_regression_check.py runs/NAME --merged merged            # the merged checkpoint instead of the adapter
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
    Evaluation,
    EvaluationError,
    Job,
    Served,
    evaluate,
    load_evaluation,
    prepare,
    read_problems,
)

Rows = dict[str, dict[str, Any]]  # problem id -> record
SAID = ("response", "tokens", "finish_reason")
SHOWN = 10  # problems whose responses differ


def read_run(folder: Path, step: int | None) -> tuple[Evaluation, dict[str, Any]]:
    """The run's evaluation and its flags.

    Raises:
        EvaluationError: there is no run, no evaluation of the step, or the step's adapter is not there.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise EvaluationError(f"{folder} is no run: it has no config.json")
    evaluation = load_evaluation(folder / "eval.jsonl", step)
    return evaluation, json.loads(config.read_text())


def adapter_of(folder: Path, step: int, last: int) -> Path:
    """The adapter as it was when the evaluation was made."""
    checkpoint = folder / "checkpoints" / "_actor" / f"global_step{step}" / "adapter"
    final = folder / "adapter"
    if step == last and final.is_dir():
        return final
    if checkpoint.is_dir():
        return checkpoint
    raise EvaluationError(f"{folder} has no adapter of step {step}: neither {final} (step {last}) nor {checkpoint}")


def by_problem(evaluation: Evaluation) -> Rows:
    """Raises EvaluationError when a problem stands there twice."""
    rows = {row["id"]: row for row in evaluation.rows}
    if len(rows) < len(evaluation.rows):
        raise EvaluationError(f"{evaluation.path}: {len(evaluation.rows) - len(rows)} problems stand there twice")
    return rows


def verdict(row: dict[str, Any]) -> tuple[Any, ...]:
    return str(row["label"]), row["answer"], row["correct"]


def differing(a: Rows, b: Rows) -> list[str]:
    """Problems whose label, answer or verdict differ."""
    return sorted(key for key in a if verdict(a[key]) != verdict(b[key]))


def regraded(rows: Rows) -> list[str]:
    """Problems whose stored answer or verdict is not what the grader says of the stored response."""
    wrong = []
    for key, row in rows.items():
        found = reward_func_em.grade(row["response"], row["label"])
        if (row["answer"], row["correct"]) != (found.answer, found.correct and row["finish_reason"] != "length"):
            wrong.append(key)
    return sorted(wrong)


def find(args: argparse.Namespace) -> tuple[Evaluation, list[Job]]:
    """The run's evaluation, and the two that are to be made of the same checkpoint.

    Raises:
        EvaluationError: the run, its problems, prompt or decoding are not there any more, or cannot be compared.
    """
    trained, config = read_run(args.run_dir, args.step)
    step = trained.rows[0]["step"]
    last = load_evaluation(args.run_dir / "eval.jsonl").rows[0]["step"]
    base = Path(config["vllm_pretrain"] or config["pretrain"])
    if args.merged:
        served = Served("merged", args.merged)
    elif step == 0:
        served = Served("base", base)
    else:
        served = Served("adapter", base, adapter_of(args.run_dir, step, last))
    problems = read_problems(Path(config["eval_dataset"]))
    if {p.id: p.label for p in problems} != {key: str(row["label"]) for key, row in by_problem(trained).items()}:
        raise EvaluationError(
            f"{config['eval_dataset']} does not hold the problems and labels of the run's evaluation any more"
        )
    if config["eval_temperature"] != 0 or config["eval_n_samples_per_prompt"] != 1:
        raise EvaluationError("the run did not evaluate greedily; samples drawn twice differ by chance")
    decoding = Decoding.of(0.0, config["generate_max_len"], 1, config["reasoning_effort"])
    if decoding.prompt_fingerprint != config["prompt_fingerprint"]:
        raise EvaluationError(
            f"the prompt has changed since the run: {config['prompt_fingerprint']} then, {decoding.prompt_fingerprint} now"
        )
    folder, shards = args.output / args.run_dir.absolute().name, config["vllm_tensor_parallel_size"]
    jobs = [
        prepare(served, problems, decoding, folder / f"step{step}-{served.name}-{number}.jsonl",
                tp_size=shards, seed=config["seed"], anew=not args.resume)
        for number in (1, 2)
    ]  # fmt: skip
    prompts = [row["id"] for row in trained.rows if row["prompt"] != jobs[0].prompts[row["id"]]]
    if prompts:
        raise EvaluationError(f"{len(prompts)} prompts are not those of the run, first {prompts[0]}")
    return trained, jobs


def describe(before: Rows, runs: tuple[Rows, Rows], tolerance: int) -> tuple[list[str], list[str]]:
    """What is to be said in any case, and a line for each difference that counts; none when there are few enough."""
    first, second = runs
    noise, found = set(differing(first, second)), set(differing(before, first))
    counted = sorted(found - noise)
    texts = sorted(key for key in before if any(before[key][part] != first[key][part] for part in SAID))
    said = [
        f"{len(before)} problems: {len(before) - len(texts)} responses equal to the token; verdicts differ on {len(found)}",
        f"two post-hoc evaluations differ from each other on {len(noise)}, of which {len(found & noise)} are left out",
    ]
    if texts:
        more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        said.append(f"responses differ on {', '.join(texts[:SHOWN])}{more}")
    wrong = regraded(before)
    lines = [f"{key}: in training {before[key]['answer']} ({before[key]['correct']}) is recorded, which is not what the grader "
             "says of the recorded response" for key in wrong]  # fmt: skip
    if len(counted) > tolerance:
        lines += [f"{key}: in training {before[key]['answer']} ({before[key]['correct']}), post hoc {first[key]['answer']} "
                  f"({first[key]['correct']}), label {before[key]['label']}" for key in counted]  # fmt: skip
    return said, lines


def check(args: argparse.Namespace) -> list[str]:
    """Lines that describe each problem on which in-training and post-hoc differ beyond the measured nondeterminism."""
    trained, jobs = find(args)
    if jobs[0].unsure:
        print(f"eval_regression_check: warning: {jobs[0].unsure}", file=sys.stderr)
    for job in jobs:
        evaluate(job)
    after = [load_evaluation(job.records) for job in jobs]
    print(
        f"step {trained.step}, {jobs[0].served.name}: in training {trained.score.mean:.1%}, post hoc {after[0].score.mean:.1%}"
    )
    said, lines = describe(by_problem(trained), (by_problem(after[0]), by_problem(after[1])), args.tolerance)
    print("\n".join(said))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="folder of a run")
    parser.add_argument("--step", type=int, default=None, help="global step; default: the last evaluation")
    parser.add_argument("--merged", type=Path, default=None,
        help="a merged checkpoint of that step; default: the run's adapter")  # fmt: skip
    parser.add_argument(
        "--tolerance", type=int, default=0, help="differing problems to allow beyond those left out; default: 0"
    )
    parser.add_argument("--resume", action="store_true",
        help="go on with records of an earlier call; default: they are thrown away")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("evals"), help="folder; default: evals")
    args = parser.parse_args()
    try:
        found = check(args)
    except (EvaluationError, GateError, OSError) as error:
        sys.exit(f"eval_regression_check: {error}")
    except KeyboardInterrupt:
        sys.exit("eval_regression_check: interrupted; with --resume the same command goes on where it stopped")
    if found:
        print("\n".join(found))
        sys.exit(1)
    print("in-training and post-hoc evaluation agree")


if __name__ == "__main__":
    main()
