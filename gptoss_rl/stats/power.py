"""What a number of problems can show, and how many a difference needs."""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm, t

from gptoss_rl.stats.base import ALPHA, POWER, StatsError, whole

TYPICAL_DISCORDANT = 0.15  # share of problems on which a model and its fine-tuned self differ, for planning
MOST_PROBLEMS = 10_000_000  # of a plan


def least_discordant(alpha: float = ALPHA) -> int:
    """Problems that must differ, all one way, for exact McNemar or a sign-flip test to see anything: 6, as 2 x 0.5^6 = 0.03."""
    return math.ceil(math.log2(2 / alpha))


def least_detectable(n: int, alpha: float = ALPHA) -> float | None:
    """Share of problems that must differ, all one way, for exact McNemar to find it with 80 % probability.

    None when n problems are too few for anything to be found.
    """
    least = least_discordant(alpha)
    return float(beta.ppf(POWER, least, n - least + 1)) if n >= least else None


def mcnemar_power(n: int, discordant_share: float, effect: float, alpha: float = ALPHA) -> float:
    """Probability that exact McNemar finds a true difference of `effect`; summed over the outcomes, nothing approximated.

    Args:
        discordant_share: expected share of problems on which the two models differ.
    """
    # Numbers of discordant pairs that matter: those outside have a probability of 1e-12 together.
    first, last = binom.interval(1 - 1e-12, n, discordant_share)
    pairs = np.arange(int(first), int(last) + 1)
    # The fewest gains of so many discordant pairs that are significant; the losses are their mirror image.
    least = binom.isf(alpha / 2, pairs, 0.5) + 1
    gain = (discordant_share + effect) / (2 * discordant_share)
    found = binom.sf(least - 1, pairs, gain) + binom.cdf(pairs - least, pairs, gain)
    return float((binom.pmf(pairs, n, discordant_share) * found).sum())


def check_share(share: float) -> None:
    """Raises StatsError unless it is a share of problems on which two models can differ."""
    if not 0 < share <= 1:
        raise StatsError(f"{share:g} is no share of problems on which two models differ: it must be above 0 and at most 1")


def detectable_mcnemar(n: int, discordant_share: float, alpha: float = ALPHA) -> float | None:
    """Smallest true difference that exact McNemar finds with 80 % probability when so many problems differ.

    When even differences all one way would be too few, the share must grow with the effect: `least_detectable`.
    """
    if discordant_share <= 0 or mcnemar_power(n, discordant_share, discordant_share, alpha) < POWER:
        return least_detectable(n, alpha)
    return float(
        brentq(lambda effect: mcnemar_power(n, discordant_share, effect, alpha) - POWER, 0.0, discordant_share, xtol=1e-5)
    )


def detectable(differences: np.ndarray, alpha: float = ALPHA) -> float | None:
    """Smallest true difference found with 80 % probability by a comparison with these differences of the problems' shares.

    For shares of several samples by the normal approximation, with two floors for models that hardly differ: fewer problems
    than a test can see say as little as none, and the error is no less than that of models that agree everywhere
    (`adjusted_interval`).
    """
    n = len(differences)
    if whole(differences):
        return detectable_mcnemar(n, float(np.abs(differences).mean()), alpha)
    if np.count_nonzero(differences) < least_discordant(alpha):
        return least_detectable(n, alpha)
    error = max(float(differences.std(ddof=1)) / math.sqrt(n), 1 / (n + 2))
    return min(1.0, float(t.ppf(1 - alpha / 2, n - 1) + t.ppf(POWER, n - 1)) * error)


def problems_needed(effect: float, discordant_share: float) -> int:
    """Problems from which on a difference of `effect` is found with 80 % probability by exact McNemar, to 1 %.

    Args:
        discordant_share: share of problems on which the two models differ.

    Raises:
        StatsError: the effect needs more problems to differ, or more problems than any set has.
    """
    check_share(discordant_share)
    if not 0 < effect <= discordant_share:
        raise StatsError(f"a difference of {effect:g} needs at least as many problems on which the models differ")
    # The normal approximation's root of n, cut where the answer is no: its square may be beyond any number.
    root = (norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)) * math.sqrt(discordant_share - effect**2) / effect
    n = max(1, math.ceil(min(root, MOST_PROBLEMS) ** 2))
    while n <= MOST_PROBLEMS and mcnemar_power(n, discordant_share, effect) < POWER:
        n = math.ceil(1.01 * n)
    if n > MOST_PROBLEMS:
        raise StatsError(f"a difference of {effect:g} needs more than {MOST_PROBLEMS:,} problems")
    return n
