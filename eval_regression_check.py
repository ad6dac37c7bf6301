"""In-training against post-hoc evaluation of one checkpoint, problem by problem.

Takes a run and finds the rest: the problems and prompts of its last evaluation, its decoding, its base model and adapter. The
adapter is served as in training and the same evaluation is made twice; where the two disagree with each other is what the
engine's nondeterminism amounts to. Exits with 1 and the list when in-training and post-hoc differ by more.

    python eval_regression_check.py runs/NAME
    python eval_regression_check.py runs/NAME --merged merged            # the merged checkpoint instead of the adapter
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gptoss_rl.errors import GateError
from gptoss_rl.evaluation import (
    Decoding,
    Evaluation,
    EvaluationError,
    Served,
    evaluate,
    load_evaluation,
    read_problems,
)


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


def differing(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> list[str]:
    """Problems whose verdicts differ."""
    return sorted(key for key in a if a[key]["correct"] != b[key]["correct"])


def check(args: argparse.Namespace) -> list[str]:
    """Lines that describe each problem on which in-training and post-hoc differ beyond the measured nondeterminism."""
    trained, config = read_run(args.run_dir, args.step)
    step = trained.rows[0]["step"]
    last = max(row["step"] for row in load_evaluation(args.run_dir / "eval.jsonl").rows)
    base = Path(config["vllm_pretrain"] or config["pretrain"])
    if args.merged:
        served = Served("merged", args.merged)
    elif step == 0:
        served = Served("base", base)
    else:
        served = Served("adapter", base, adapter_of(args.run_dir, step, last))
    problems = read_problems(Path(config["eval_dataset"]))
    if {p.id for p in problems} != set(trained.shares):
        raise EvaluationError(f"{config['eval_dataset']} does not hold the problems of the run's evaluation any more")
    decoding = Decoding.of(0.0, config["generate_max_len"], 1, config["reasoning_effort"])
    if decoding.prompt_fingerprint != config["prompt_fingerprint"]:
        raise EvaluationError(
            f"the prompt has changed since the run: {config['prompt_fingerprint']} then, {decoding.prompt_fingerprint} now"
        )
    if config["eval_temperature"] != 0 or config["eval_n_samples_per_prompt"] != 1:
        raise EvaluationError("the run did not evaluate greedily; samples drawn twice differ by chance")
    rows = []
    for number in (1, 2):
        records = args.output / args.run_dir.name / f"step{step}-{served.name}-{number}.jsonl"
        evaluate(served, problems, decoding, records, tp_size=config["vllm_tensor_parallel_size"], seed=config["seed"])
        rows.append({row["id"]: row for row in load_evaluation(records).rows})
    before = {row["id"]: row for row in trained.rows}
    prompts = [key for key in before if before[key]["prompt"] != rows[0][key]["prompt"]]
    if prompts:
        raise EvaluationError(f"{len(prompts)} prompts are not those of the run, first {prompts[0]}")
    noise, found = differing(*rows), differing(before, rows[0])
    same_text = sum(before[key]["response"] == rows[0][key]["response"] for key in before)
    after = sum(row["correct"] for row in rows[0].values()) / len(problems)
    print(f"step {step}, {served.name}: in training {trained.score.mean:.1%}, post hoc {after:.1%}")
    print(f"{len(problems)} problems: {same_text} responses equal to the token; verdicts differ on {len(found)}")
    print(f"two post-hoc evaluations differ from each other on {len(noise)}")
    if len(found) <= len(noise) + args.tolerance:
        return []
    return [f"{key}: in training {before[key]['answer']} ({before[key]['correct']}), post hoc {rows[0][key]['answer']} "
            f"({rows[0][key]['correct']}), label {before[key]['label']}" for key in found]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--step", type=int, default=None, help="default: the last evaluation")
    parser.add_argument("--merged", type=Path, default=None, help="a merged checkpoint of that step, instead of the adapter")
    parser.add_argument(
        "--tolerance", type=int, default=0, help="differing problems to allow beyond the measured nondeterminism"
    )
    parser.add_argument("--output", type=Path, default=Path("evals"))
    args = parser.parse_args()
    try:
        found = check(args)
    except (EvaluationError, GateError) as error:
        sys.exit(f"eval_regression_check: {error}")
    if found:
        print("\n".join(found))
        sys.exit(1)
    print("in-training and post-hoc evaluation agree")


if __name__ == "__main__":
    main()
