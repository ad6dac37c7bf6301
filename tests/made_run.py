"""A made-up run directory, for what reads runs: every registered metric, evaluations, samples, syncs, a log."""

import json
import time
from pathlib import Path

from gptoss_rl.metrics import METRICS
from gptoss_rl.prompts import render_prompt

PROBLEMS = 200


def metrics_line(step: int, now: float, **changes: float) -> dict:
    values = dict.fromkeys(METRICS, 0.5)
    values |= {"reward/mean": min(0.9, 0.3 + step / 300), "reward/all_right": 0.1, "reward/all_wrong": 0.2, "parity/kl": 1e-4,
               "policy/entropy": 0.4, "rollout/truncated": 0.05, "time/step": 2.0, "time/generate": 1.4, "time/train": 0.5,
               "time/experience": 0.07, "time/sync": 0.03}  # fmt: skip
    return {"step": step, "time": now, **values, **changes}


def eval_line(step: int, problem: int, correct: bool) -> dict:
    answer = str(problem) if correct else "0"
    return {"step": step, "id": f"p{problem}", "prompt": render_prompt(f"What is {problem} + 0 </script> <b>&amp;?"),
            "response": f"<|channel|>final<|message|>\\boxed{{{answer}}}", "label": str(problem), "answer": answer,
            "reward": float(correct), "correct": correct, "tokens": 9, "finish_reason": "stop"}  # fmt: skip


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


FAILED_SYNC = {"step": 5, "time": 0.0, "policy_version": 9, "mode": "adapter", "modules": 96, "engines": 2, "workers": 4,
               "seconds": {"total": 0.1}, "error": "[gate sync] engine 1, worker of TP rank 0: OutOfMemoryError"}  # fmt: skip


def make_run(folder: Path, steps: int = 200, *, finished: bool = True, age: float = 0.0) -> Path:
    """Write a run whose last step was finished `age` seconds ago."""
    folder.mkdir(parents=True)
    start = time.time() - age - 2.0 * steps
    (folder / "command.txt").write_text("python -m openrlhf.cli.train_ppo_ray --run_dir x\n")
    (folder / "train.log").write_text("\x1b[36mnoise\x1b[0m\n")
    prompts = folder / "prompts.jsonl"
    write_lines(prompts, [{"input": f"{i}?", "label": i} for i in range(8 * steps)])
    config = {"max_samples": 10**8, "prompt_data": str(prompts), "rollout_batch_size": 8, "num_episodes": 1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(
        json.dumps({"git_commit": "abc", "versions": {"torch": "2"}, "cpus": 2, "gpus": []})
    )
    write_lines(folder / "metrics.jsonl", [metrics_line(i + 1, start + 2.0 * (i + 1)) for i in range(steps)])
    sync = {
        "policy_version": steps + 3,
        "engines": 2,
        "workers": 4,
        "modules": 96,
        "mode": "adapter",
        "seconds": {"total": 0.3},
    }
    write_lines(folder / "sync.jsonl", [{"step": steps, **sync}])
    evaluations = [eval_line(0, p, p % 3 == 0) for p in range(PROBLEMS)]
    if finished:
        evaluations += [eval_line(steps, p, p % 4 != 0) for p in range(PROBLEMS)]
        (folder / "summary.json").write_text("{}")
    write_lines(folder / "eval.jsonl", evaluations)
    write_lines(folder / "samples.jsonl", [eval_line(steps, 7, True)])
    return folder
