"""The rules by which a monitor raises its voice: each looks at the steps so far and says one sentence, or nothing.

An alert stops nothing; gates do. Thresholds are set so that the finished runs under results/ are quiet and averages, not
single steps, set them off.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any

from gptoss_rl.flags import ParityLimits
from gptoss_rl.metrics import METRICS

Steps = list[dict[str, Any]]
Config = dict[str, Any]  # the run's config.json, empty when it has none

WINDOW = 10  # steps over which a level is averaged: a step of 8 prompts has a standard error of a tenth
REWARD_LEARNED = 0.1  # reward below which half of it is noise, and nothing has been learned that could be lost
REWARD_LEFT = 0.5  # of the best level: twice what a drift of the prompts' difficulty moves
ENTROPY_LEFT = 0.1  # of the first level: runs that learn keep a third to a half, one that samples a single text none
NEAR_LIMIT = 2 / 3  # of the KL at which the run stops itself, to be heard before it does
NEAR_LIMIT_STEPS = 3  # on end, fewer than the five of --mismatch_patience
LATE_OVER_EARLY = 2.0  # rounding is the same at every position, a wrong RoPE or window is not
LATE_LEAST = 0.03  # nats: below it both ends are rounding, and their quotient says nothing
TRUNCATION_RISE = 0.15  # share of responses: more than a step's responses vary by, and it costs as much reward
MASKED = 0.5  # share of trained tokens with a weight of 0: the correction takes away more than it leaves
NO_VARIANCE = 0.9  # share of groups without a gradient: a step learns from less than a tenth of what it costs


def _levels(steps: Steps, key: str) -> tuple[float, float, float] | None:
    """First, best and last mean over `WINDOW` steps; None while there are too few."""
    values = [s[key] for s in steps if key in s and math.isfinite(s[key])]
    if len(values) < 2 * WINDOW:
        return None
    means = [statistics.fmean(values[i : i + WINDOW]) for i in range(0, len(values) - WINDOW + 1, WINDOW)]
    return means[0], max(means), statistics.fmean(values[-WINDOW:])


def _is_fault(key: str, value: Any) -> bool:
    if not isinstance(value, float) or math.isfinite(value):
        return False
    return math.isnan(value) or key not in METRICS or not METRICS[key].may_be_infinite


def not_a_number(steps: Steps, config: Config) -> str | None:
    """A NaN in the last `WINDOW` steps, or an infinity where the registry allows none: whatever it came from is broken."""
    bad = sorted({k for s in steps[-WINDOW:] for k, v in s.items() if _is_fault(k, v)})
    return f"not a number: {', '.join(bad[:4])}" if bad else None


def reward_collapse(steps: Steps, config: Config) -> str | None:
    """Reward below `REWARD_LEFT` of its best level, once that was above `REWARD_LEARNED`: the policy has lost the task."""
    levels = _levels(steps, "reward/mean")
    if levels and levels[1] > REWARD_LEARNED and levels[2] < REWARD_LEFT * levels[1]:
        return f"reward collapsed: {levels[2]:.3f} over the last {WINDOW} steps, {levels[1]:.3f} at its best"
    return None


def entropy_collapse(steps: Steps, config: Config) -> str | None:
    """Entropy below `ENTROPY_LEFT` of its first level: samples of a prompt are one text, and groups have no variance."""
    levels = _levels(steps, "policy/entropy")
    if levels and levels[2] < ENTROPY_LEFT * levels[0]:
        return f"entropy collapsed: {levels[2]:.4f} nats, {levels[0]:.4f} at the start: samples hardly differ any more"
    return None


def kl_limit(config: Config) -> float:
    """KL of sampler and trainer at which the run stops itself; that of a run with the defaults, where it would not."""
    own = ParityLimits.of(config).stopping_kl()
    return own if math.isfinite(own) else ParityLimits().stopping_kl()


def mismatch(steps: Steps, config: Config) -> str | None:
    """KL above `NEAR_LIMIT` of the run's own limit in `NEAR_LIMIT_STEPS` steps on end: it will soon be stopped by a gate."""
    near = NEAR_LIMIT * kl_limit(config)
    recent = [s["parity/kl"] for s in steps[-NEAR_LIMIT_STEPS:] if "parity/kl" in s]
    if len(recent) == NEAR_LIMIT_STEPS and min(recent) > near:
        return (
            f"trainer and sampler drift apart: KL {recent[-1]:.2g} nats a token, above {near:.2g} for {NEAR_LIMIT_STEPS} "
            f"steps; the run's limit is {kl_limit(config):.2g}"
        )
    return None


def mismatch_by_position(steps: Steps, config: Config) -> str | None:
    """Logprobs differ late in a sequence by more than `LATE_LEAST`, `LATE_OVER_EARLY` times the early difference."""
    recent = [s for s in steps[-NEAR_LIMIT_STEPS:] if "parity/abs_diff_late" in s and "parity/abs_diff_early" in s]
    ends = [(s["parity/abs_diff_early"], s["parity/abs_diff_late"]) for s in recent]
    if len(ends) == NEAR_LIMIT_STEPS and all(late > LATE_OVER_EARLY * early and late > LATE_LEAST for early, late in ends):
        early, late = ends[-1]
        return f"trainer and sampler differ more at late positions: {late:.3f} nats, {early:.3f} at early ones: RoPE or window"
    return None


def masked_away(steps: Steps, config: Config) -> str | None:
    """The correction sets more than `MASKED` of the trained tokens to 0, over `WINDOW` steps: little is learned from."""
    recent = [s["mismatch/masked"] for s in steps[-WINDOW:] if "mismatch/masked" in s]
    if len(recent) == WINDOW and statistics.fmean(recent) > MASKED:
        return f"masked away: the correction sets {statistics.fmean(recent):.0%} of the trained tokens to 0 (--is_correction)"
    return None


def truncation_rising(steps: Steps, config: Config) -> str | None:
    """`TRUNCATION_RISE` more responses are cut off than at the start: they earn nothing, however good they are."""
    levels = _levels(steps, "rollout/truncated")
    if levels and levels[2] - levels[0] > TRUNCATION_RISE:
        return f"truncation rises: {levels[2]:.0%} of responses are cut off, {levels[0]:.0%} at the start"
    return None


def nothing_to_learn(steps: Steps, config: Config) -> str | None:
    """More than `NO_VARIANCE` of groups are all right or all wrong, over `WINDOW` steps: the data are too easy or too hard."""
    recent = [s["reward/all_right"] + s["reward/all_wrong"] for s in steps[-WINDOW:] if "reward/all_right" in s]
    if len(recent) == WINDOW and statistics.fmean(recent) > NO_VARIANCE:
        return f"nothing to learn: {statistics.fmean(recent):.0%} of groups are all right or all wrong"
    return None


RULES: tuple[Callable[[Steps, Config], str | None], ...] = (
    not_a_number,
    reward_collapse,
    entropy_collapse,
    mismatch,
    mismatch_by_position,
    masked_away,
    truncation_rising,
    nothing_to_learn,
)
STATES = {
    "stalled": "no step was finished for much longer than one takes",
    "stopped": "by a gate or an error, which train.log names",
    "crashed": "the launcher is gone and the run has no summary",
}


def sync_failure(record: dict[str, Any]) -> str:
    """What a line of sync.jsonl says that has an error."""
    answered = f"{record['workers']} workers of {record['engines']} engines answered"
    version = f" of policy version {record['policy_version']} ({answered})" if record["policy_version"] is not None else ""
    return f"sync{version} at step {record['step']} failed: {record['error']}"


def alerts(steps: Steps, state: str, config: Config | None = None, failed_sync: dict[str, Any] | None = None) -> list[str]:
    """Everything that is wrong with a run, from its state, its steps and its last sync; thresholds follow its own `config`."""
    found = [sync_failure(failed_sync)] if failed_sync else []
    found += [message for rule in RULES if (message := rule(steps, config or {})) is not None]
    return [f"{state}: {STATES[state]}", *found] if state in STATES else found
