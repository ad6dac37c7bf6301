"""The rules by which a monitor raises its voice: each looks at the steps so far and says one sentence, or nothing."""

import math
import statistics
from collections.abc import Callable
from typing import Any

Steps = list[dict[str, Any]]
WINDOW = 10  # steps over which a level is averaged
MAY_BE_INFINITE = ("parity/abs_diff_se", "parity/kl_se")  # the error of a mean over one token


def _levels(steps: Steps, key: str) -> tuple[float, float, float] | None:
    """First, best and last mean over `WINDOW` steps; None while there are too few."""
    values = [s[key] for s in steps if key in s and math.isfinite(s[key])]
    if len(values) < 2 * WINDOW:
        return None
    means = [statistics.fmean(values[i : i + WINDOW]) for i in range(0, len(values) - WINDOW + 1, WINDOW)]
    return means[0], max(means), statistics.fmean(values[-WINDOW:])


def not_a_number(steps: Steps) -> str | None:
    bad = [k for s in steps[-WINDOW:] for k, v in s.items() if isinstance(v, float) and not math.isfinite(v)]
    bad = sorted(set(bad) - set(MAY_BE_INFINITE))
    return f"not a number: {', '.join(bad[:4])}" if bad else None


def reward_collapse(steps: Steps) -> str | None:
    levels = _levels(steps, "reward/mean")
    if levels and levels[1] > 0.1 and levels[2] < 0.5 * levels[1]:
        return f"reward collapsed: {levels[2]:.3f} over the last {WINDOW} steps, {levels[1]:.3f} at its best"
    return None


def entropy_collapse(steps: Steps) -> str | None:
    levels = _levels(steps, "policy/entropy")
    if levels and levels[2] < 0.1 * levels[0]:
        return f"entropy collapsed: {levels[2]:.4f} nats, {levels[0]:.4f} at the start: samples hardly differ any more"
    return None


def mismatch(steps: Steps) -> str | None:
    recent = [s["parity/kl"] for s in steps[-3:] if "parity/kl" in s]
    if len(recent) == 3 and min(recent) > 0.01:
        return f"trainer and sampler drift apart: KL {recent[-1]:.4f} nats a token, above 0.01 for three steps"
    return None


def truncation_rising(steps: Steps) -> str | None:
    levels = _levels(steps, "rollout/truncated")
    if levels and levels[2] - levels[0] > 0.15:
        return f"truncation rises: {levels[2]:.0%} of responses are cut off, {levels[0]:.0%} at the start"
    return None


def nothing_to_learn(steps: Steps) -> str | None:
    recent = [s["reward/all_right"] + s["reward/all_wrong"] for s in steps[-WINDOW:] if "reward/all_right" in s]
    if len(recent) == WINDOW and statistics.fmean(recent) > 0.9:
        return f"nothing to learn: {statistics.fmean(recent):.0%} of groups are all right or all wrong"
    return None


RULES: tuple[Callable[[Steps], str | None], ...] = (
    not_a_number,
    reward_collapse,
    entropy_collapse,
    mismatch,
    truncation_rising,
    nothing_to_learn,
)


def alerts(steps: Steps, state: str) -> list[str]:
    """Everything that is wrong with a run as far as its steps tell."""
    found = [message for rule in RULES if (message := rule(steps)) is not None]
    if state == "stalled":
        found.insert(0, "stalled: no step was finished for much longer than one takes")
    if state == "crashed":
        found.insert(0, "crashed: the launcher is gone and the run has no summary")
    return found
