"""One evaluation: the mean over problems, its standard error and its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.stats import norm, t
from statsmodels.stats.proportion import proportion_confint

from gptoss_rl.stats.base import ALPHA, StatsError, whole

MOST_SAMPLES = 1024  # of a problem, for reading their number from the shares


@dataclass(frozen=True)
class Score:
    """A mean over problems with its uncertainty."""

    n: int  # problems
    mean: float
    standard_error: float
    low: float  # 95 % interval
    high: float


def wilson(right: float, n: float, alpha: float = ALPHA) -> list[float]:
    """Wilson's interval of a share, 95 % by default; `n` may be an effective number."""
    return [float(bound) for bound in proportion_confint(right, n, alpha=alpha, method="wilson")]


def score(shares: Sequence[float]) -> Score:
    """Of the share of right samples of each problem.

    One sample a problem: Wilson's interval. Several: the problems are the clusters, because samples of one problem are
    alike; the standard error is that of the problems' means (Miller, arXiv 2411.00640, section 2.2), the interval that of
    `clustered_interval`.

    Raises:
        StatsError: there are no problems.
    """
    values = np.asarray(shares, dtype=float)
    if not len(values):
        raise StatsError("no problems, so there is no score")
    n, mean = len(values), float(values.mean())
    if whole(values):
        return Score(n, mean, math.sqrt(mean * (1 - mean) / n), *wilson(values.sum(), n))
    error = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else float("nan")
    return Score(n, mean, error, *clustered_interval(values))


def clustered_interval(values: np.ndarray) -> list[float]:
    """95 % interval of the mean of the problems' shares: Wilson's, for the number of samples that they are worth.

    That number, m (1 - m) / SE^2, is between n (samples of a problem always agree) and all samples (they are independent);
    the quantile is t's for n clusters (Korn and Graubard, Survey Methodology 24:193, 1998, who take Clopper and Pearson's).
    Near 0 and 1 only the few problems that are sometimes right or wrong tell how much problems differ, and the rare
    solvable problem that matters most is often not among them: one problem whose samples all agree is counted with them.
    """
    n, mean = len(values), float(values.mean())
    if n == 1:
        return [0.0, 1.0]
    telling = min(np.count_nonzero(values > 0), np.count_nonzero(values < 1))
    all_agree = mean * (1 - mean)  # the problems' variance when all samples of a problem agree
    variance = (telling * values.var(ddof=1) + all_agree) / (telling + 1)
    worth = min(n * all_agree / variance, n * samples_a_problem(values))
    return wilson(mean * worth, worth, alpha=2 * norm.sf(t.ppf(1 - ALPHA / 2, n - 1)))


def samples_a_problem(shares: np.ndarray) -> int:
    """The fewest samples of which all shares can be."""
    return math.lcm(*(Fraction(float(share)).limit_denominator(MOST_SAMPLES).denominator for share in np.unique(shares)))


def pass_at_k_shares(right: Sequence[int], samples: int, k: int) -> list[float]:
    """Unbiased pass@k of each problem (Chen et al., arXiv 2107.03374, equation 1).

    Args:
        right: right samples of each problem, of `samples`.

    Raises:
        StatsError: k is larger than the number of samples.
    """
    if not 1 <= k <= samples:
        raise StatsError(f"pass@{k} needs at least {k} samples a problem, there are {samples}")
    return [1 - math.comb(samples - c, k) / math.comb(samples, k) for c in right]


def pass_at_k(right: Sequence[int], samples: int, k: int) -> float:
    """Unbiased pass@k, mean over problems; arguments and errors as of `pass_at_k_shares`."""
    return float(np.mean(pass_at_k_shares(right, samples, k)))


def pass_at_every_k(right: Sequence[int], samples: int) -> dict[int, Score]:
    """pass@k with its interval over problems: for powers of two, and for all samples."""
    ks = sorted({*(2**i for i in range(samples.bit_length())), samples})
    return {k: score(pass_at_k_shares(right, samples, k)) for k in ks}
