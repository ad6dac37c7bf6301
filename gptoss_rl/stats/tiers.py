"""What sets may be used for: primary, stability, sanity only."""

import math
from dataclasses import dataclass
from pathlib import Path

from gptoss_rl.stats.base import StatsError

TYPICAL_RATE = 0.65  # pass rate at which tiers state their standard error


@dataclass(frozen=True)
class Tier:
    """What some sets may be used for."""

    name: str
    least: int  # problems
    ranks_models: bool
    sets: tuple[str, ...]  # those that were built for it


TIERS = (
    Tier("primary", 900, True, ("probe_set_1000_ood",)),
    Tier("stability", 100, True, ("probe_set_200", "probe_set_200_ood")),
    Tier("sanity only", 1, False, ("aime_eval",)),
)
OTHER_SETS = TIERS[1]  # the best tier of a set that was built for none, such as training data, however large it is


def tier_of(n: int, set_name: str | None = None) -> Tier:
    """The tier of n problems: that of the set they are from, but never a better one than so many problems allow.

    Args:
        set_name: file of the set or its name; None when the evaluation does not say, and the size alone decides.

    Raises:
        StatsError: there are no problems.
    """
    if n < 1:
        raise StatsError("no problems, so there is no score")
    best = TIERS[0]
    if set_name is not None:
        stem = Path(set_name).name.removesuffix(".jsonl")
        best = next((tier for tier in TIERS if stem in tier.sets), OTHER_SETS)
    return next(tier for tier in TIERS[TIERS.index(best) :] if n >= tier.least)


def tier_label(n: int, set_name: str | None = None) -> str:
    """The tier with the standard error that n problems have at a pass rate of 0.65: "primary, ±1.5 %"."""
    return f"{tier_of(n, set_name).name}, ±{100 * math.sqrt(TYPICAL_RATE * (1 - TYPICAL_RATE) / n):.1f} %"
