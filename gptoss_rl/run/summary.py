"""The closing table of a run and its summary.json: what changed, and whether it can be told from chance.

`python -m gptoss_rl.run.summary runs/NAME`
"""

import argparse
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptoss_rl.metrics import PHASES
from gptoss_rl.records import shares_by_step
from gptoss_rl.run.resume import changes, lives
from gptoss_rl.run_files import read_json_lines, write_json_atomically
from gptoss_rl.stats import StatsError, paired, tier_label, tier_of


class SummaryError(ValueError):
    """A run whose ends cannot be compared."""


def summarise(folder: Path) -> dict[str, Any]:
    """Figures of a finished run.

    Raises:
        SummaryError: the run has no finished step, or was resumed as another run.
        StatsError: its evaluations did not see the same problems.
    """
    steps = list(read_json_lines(folder / "metrics.jsonl"))
    if not steps:
        raise SummaryError(f"{folder}/metrics.jsonl holds no finished step")
    check_lives(folder)
    syncs = [r["seconds"]["total"] for r in read_json_lines(folder / "sync.jsonl") if r["step"] > 0 and "error" not in r]
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
    records = list(read_json_lines(folder / "eval.jsonl"))
    evaluations = shares_by_step(records)
    if len(evaluations) >= 2:
        found = paired(evaluations[min(evaluations)], evaluations[max(evaluations)])
        temperatures = sorted({record.get("temperature", 0.0) for record in records})
        summary |= {
            "n": found.a.n,
            "eval_set": eval_set(folder),
            "eval_temperature": temperatures[0] if len(temperatures) == 1 else temperatures,
            "pass_at_1_before": found.a.mean,
            "pass_at_1_after": found.b.mean,
            "interval_before": [found.a.low, found.a.high],
            "interval_after": [found.b.low, found.b.high],
            "difference": found.difference,
            "interval_difference": [found.low, found.high],
            "problems_gained": found.gained,
            "problems_lost": found.lost,
            "p_value": found.p_value,
            "test": found.test,
        }
    return summary


def eval_set(folder: Path) -> str | None:
    """The file that the run evaluated on; None when its flags were not recorded."""
    recorded = lives(folder)
    return recorded[-1].get("eval_dataset") if recorded else None


def check_lives(folder: Path) -> None:
    """Raises SummaryError when the run was resumed with something else, past the launcher: it has no before and after then."""
    recorded = lives(folder)
    changed = [change for pair in pairwise(recorded) for change in changes(*pair)]
    if changed:
        raise SummaryError(f"{folder} was resumed as another run ({'; '.join(changed)}); its ends cannot be compared")


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
        name = "greedy pass@1" if summary["eval_temperature"] == 0 else f"pass@1 at T={summary['eval_temperature']}"
        size, named, moved = (
            summary["n"],
            summary.get("eval_set"),
            f"{summary['problems_gained']} gained, {summary['problems_lost']} lost",
        )
        rows += [
            (f"{name} before", percent(summary["pass_at_1_before"], summary["interval_before"])),
            (f"{name} after", percent(summary["pass_at_1_after"], summary["interval_after"])),
            ("held-out problems", f"{size} ({tier_label(size, named)}): {moved}"),
        ]
        if tier_of(size, named).ranks_models:
            rows += [
                ("difference", percent(summary["difference"], summary["interval_difference"])),
                ("paired p-value", f"{summary['p_value']:.2g} ({summary['test']})"),
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
    except (SummaryError, StatsError) as error:
        sys.exit(str(error))
    write_json_atomically(folder / "summary.json", summary)
    print(closing_table(summary))


if __name__ == "__main__":
    main()
