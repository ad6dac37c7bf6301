"""Two evaluations of the same problems: the difference, its interval, a test, and what the test could have found."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap, norm, permutation_test, t
from statsmodels.stats.multitest import multipletests

from gptoss_rl.stats.base import ALPHA, RESAMPLES, StatsError, whole
from gptoss_rl.stats.power import detectable
from gptoss_rl.stats.scores import Score, score

BATCH = 512  # resamples at a time: bounds the memory


@dataclass(frozen=True)
class Comparison:
    """B against A on the same problems; differences are B minus A."""

    a: Score
    b: Score
    difference: float
    low: float  # interval of the difference: `difference_interval`
    high: float
    p_value: float
    test: str
    gained: int  # problems on which B is better
    lost: int
    detectable: float | None  # smallest true difference found with 80 % probability; None when so few problems show nothing
    level: float = 1 - ALPHA  # of the interval
    differences: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)  # (problems,)

    def as_json(self) -> dict[str, Any]:
        """The figures, without the problems."""
        return {key: value for key, value in asdict(self).items() if key != "differences"}


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p-value: a binomial test of the discordant pairs; 1 when there are none."""
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def sign_flip_p_value(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided permutation test: how often random signs of the problems' differences give a mean as far from 0."""
    if not differences.any():
        return 1.0
    result = permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=BATCH,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def bootstrap_interval(differences: np.ndarray, alpha: float = ALPHA, seed: int = 0) -> tuple[float, float]:
    """Paired bootstrap: percentile interval of the mean difference; problems are resampled."""
    if len(differences) < 2 or np.ptp(differences) == 0:
        return float(differences.mean()), float(differences.mean())
    low, high = bootstrap(
        (differences,), np.mean, confidence_level=1 - alpha, n_resamples=RESAMPLES, method="percentile", batch=BATCH,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(low), float(high)


def adjusted_interval(differences: np.ndarray, alpha: float = ALPHA) -> tuple[float, float]:
    """Normal interval of the mean difference after half a problem has been added to each cell of the paired table.

    Agresti and Min, Statistics in Medicine 24:729, 2005: half a problem gained, half a problem lost, and one that does not
    differ. The same is added to shares of several samples, with t's quantile for the problems as clusters.
    """
    n, total = len(differences), len(differences) + 2
    if n == 1 and not whole(differences):
        return -1.0, 1.0
    centre = float(differences.sum()) / total
    error = math.sqrt((float((differences**2).sum()) + 1) / total - centre**2) / math.sqrt(total)
    quantile = norm.ppf(1 - alpha / 2) if whole(differences) else t.ppf(1 - alpha / 2, n - 1)
    return max(-1.0, centre - float(quantile) * error), min(1.0, centre + float(quantile) * error)


def difference_interval(differences: np.ndarray, alpha: float = ALPHA, seed: int = 0) -> tuple[float, float]:
    """At each end the wider of paired bootstrap and `adjusted_interval`.

    Resampling never crosses 0 when all problems that differ do so one way, and has no width when none does; elsewhere the
    two hardly differ.
    """
    resampled, adjusted = bootstrap_interval(differences, alpha, seed), adjusted_interval(differences, alpha)
    return min(resampled[0], adjusted[0]), max(resampled[1], adjusted[1])


def compare(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Comparison:
    """Paired comparison of the shares of right samples, in the same order of problems.

    Exact McNemar for one sample a problem, a sign-flip permutation test for several.

    Raises:
        StatsError: the numbers of problems differ.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if len(x) != len(y):
        raise StatsError(f"{len(x)} and {len(y)} problems cannot be paired")
    differences = y - x
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    if whole(differences):
        p_value, test = mcnemar(gained, lost), "exact McNemar"
    else:
        p_value, test = sign_flip_p_value(differences, seed), "sign-flip permutation"
    return Comparison(
        score(x), score(y), float(differences.mean()), *difference_interval(differences, seed=seed), p_value, test,
        gained, lost, detectable(differences), differences=differences,
    )  # fmt: skip


def paired(before: dict[str, float], after: dict[str, float]) -> Comparison:
    """Two evaluations, problem by problem: problem id -> share of right samples.

    Raises:
        StatsError: the two evaluations did not see the same problems.
    """
    if set(before) != set(after):
        raise StatsError(f"the evaluations differ in {len(set(before) ^ set(after))} problems")
    return compare([before[key] for key in before], [after[key] for key in before])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction, for when the best of several checkpoints is reported."""
    return [float(p) for p in multipletests(list(p_values), alpha=ALPHA, method="holm")[1]]


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons as they may be read when the best of them is picked: all their statements hold together at 95 %.

    p-values are Holm's, intervals and detectable differences Bonferroni's, at 5 % divided by the number of comparisons.
    """
    m = len(comparisons)
    if m < 2:
        return list(comparisons)
    alpha, made = ALPHA / m, []
    for one, p_value in zip(comparisons, holm([one.p_value for one in comparisons]), strict=True):
        low, high = difference_interval(one.differences, alpha)
        found, test = detectable(one.differences, alpha), f"{one.test}, Holm over {m}"
        made.append(replace(one, low=low, high=high, p_value=p_value, test=test, detectable=found, level=1 - alpha))
    return made
