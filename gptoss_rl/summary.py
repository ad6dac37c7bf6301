"""The closing table of a run and its summary.json: what changed, and whether it can be told from chance.

`python -m gptoss_rl.summary runs/NAME`
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from gptoss_rl.errors import GateError
from gptoss_rl.run_files import read_json_lines, write_json_atomically
from gptoss_rl.stats import mcnemar, wilson

PHASES = ("generate", "experience", "train", "sync")


def greedy_results(records: list[dict[str, Any]]) -> dict[int, dict[str, bool]]:
    """step -> problem id -> solved, from the records of eval.jsonl."""
    by_step: dict[int, dict[str, bool]] = {}
    for record in records:
        by_step.setdefault(record["step"], {})[record["id"]] = record["correct"]
    return by_step


def paired_p_value(before: dict[str, bool], after: dict[str, bool]) -> tuple[int, int, float]:
    """Problems gained, problems lost, and the two-sided exact McNemar p-value.

    Raises:
        GateError: the two evaluations did not see the same problems.
    """
    if set(before) != set(after):
        raise GateError("evaluation", f"the evaluations differ in {len(set(before) ^ set(after))} problems")
    gained = sum(after[key] and not before[key] for key in before)
    lost = sum(before[key] and not after[key] for key in before)
    return gained, lost, mcnemar(gained, lost)


def summarise(folder: Path) -> dict[str, Any]:
    """Figures of a finished run.

    Raises:
        GateError: the run has no finished step.
    """
    steps = list(read_json_lines(folder / "metrics.jsonl"))
    if not steps:
        raise GateError("summary", f"{folder}/metrics.jsonl holds no finished step")
    syncs = [r["seconds"]["total"] for r in read_json_lines(folder / "sync.jsonl") if r["step"] > 0]
    summary: dict[str, Any] = {
        "run_dir": str(folder),
        "global_steps": steps[-1]["step"],
        "reward_first": steps[0]["reward/mean"],
        "reward_last": steps[-1]["reward/mean"],
        # The median: the first step compiles and warms caches.
        "seconds_per_step": statistics.median(s["time/step"] for s in steps),
        "seconds_by_phase": {p: statistics.median(s.get(f"time/{p}", 0.0) for s in steps) for p in PHASES},
        "sync_seconds": statistics.median(syncs),
        "parity_abs_diff_mean": statistics.median(s["parity/abs_diff_mean"] for s in steps),
    }
    evaluations = greedy_results(list(read_json_lines(folder / "eval.jsonl")))
    if len(evaluations) >= 2:
        first, last = min(evaluations), max(evaluations)
        before, after = evaluations[first], evaluations[last]
        gained, lost, p_value = paired_p_value(before, after)
        n = len(before)
        summary |= {
            "n": n,
            "pass_at_1_before": sum(before.values()) / n,
            "pass_at_1_after": sum(after.values()) / n,
            "interval_before": wilson(sum(before.values()), n),
            "interval_after": wilson(sum(after.values()), n),
            "problems_gained": gained,
            "problems_lost": lost,
            "p_value": p_value,
        }
    return summary


def closing_table(summary: dict[str, Any]) -> str:
    """The figures as lines of text."""

    def percent(value: float, interval: list[float]) -> str:
        return f"{value:6.1%}  (95 % interval {interval[0]:.1%} to {interval[1]:.1%})"

    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in summary["seconds_by_phase"].items())
    rows = [
        ("global steps", f"{summary['global_steps']}"),
        (
            "mean reward",
            f"{summary['reward_first']:.3f} (first step) -> {summary['reward_last']:.3f} (last step)",
        ),
    ]
    if "n" in summary:
        rows += [
            ("greedy pass@1 before", percent(summary["pass_at_1_before"], summary["interval_before"])),
            ("greedy pass@1 after", percent(summary["pass_at_1_after"], summary["interval_after"])),
            (
                "held-out problems",
                f"{summary['n']}: {summary['problems_gained']} gained, {summary['problems_lost']} lost",
            ),
            ("paired p-value", f"{summary['p_value']:.2g} (exact McNemar)"),
        ]
    rows += [
        ("seconds a step", f"{summary['seconds_per_step']:.2f} (median; {phases})"),
        ("seconds a LoRA sync", f"{summary['sync_seconds']:.3f} (median, gather to last proof)"),
        ("trainer - sampler", f"{summary['parity_abs_diff_mean']:.4f} nats, mean |logprob difference|"),
        ("files", summary["run_dir"]),
    ]
    width = max(len(name) for name, _ in rows)
    rule = "-" * 78
    return "\n".join([rule, *(f"{name:<{width}}  {value}" for name, value in rows), rule])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="folder of a finished run")
    folder = parser.parse_args().run_dir
    try:
        summary = summarise(folder)
    except GateError as error:
        sys.exit(str(error))
    write_json_atomically(folder / "summary.json", summary)
    print(closing_table(summary))


if __name__ == "__main__":
    main()
