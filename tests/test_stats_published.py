"""Statistics against published worked examples, and against other implementations of their definitions."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap, norm
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from gptoss_rl.stats import compare, holm, mcnemar, mcnemar_power, pass_at_k, score, wilson
from gptoss_rl.stats.comparison import adjusted_interval, bootstrap_interval, sign_flip_p_value


def differences(gained: int, lost: int, n: int) -> np.ndarray:
    return np.array([1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost))


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(right: int, n: int, low: float, high: float) -> None:
    # Newcombe, Statistics in Medicine 17:857, 1998, table I, method 3.
    assert wilson(right, n) == pytest.approx([low, high], abs=5e-5)
    s = score([1.0] * right + [0.0] * (n - right))
    assert (s.low, s.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_wilsons() -> None:
    # Computed by hand from Wilson (1927): p = 0.65, n = 200, z = 1.959964.
    z, n, p = norm.ppf(0.975), 200, 0.65
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    s = score([1.0] * 130 + [0.0] * 70)
    assert (s.low, s.high) == pytest.approx((centre - half, centre + half))
    assert s.standard_error == pytest.approx(math.sqrt(0.65 * 0.35 / 200))


def test_paired_shares_as_published() -> None:
    # Complete response before and after consolidation, 59, 6, 16 and 80 patients (Cavo et al., Blood 120:9, 2012), as in
    # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, 2017, chapter 8, whose R package
    # contingencytables gives the exact conditional P = 0.052479 and Agresti and Min's interval -0.1182 to -0.0045.
    assert mcnemar(6, 16) == pytest.approx(0.052479, abs=5e-7)
    assert adjusted_interval(differences(6, 16, 161)) == pytest.approx((-0.1182, -0.0045), abs=5e-5)


def test_mcnemar_as_published() -> None:
    # Approval of a president in two surveys: 794, 150, 86 and 570 of 1,600 (Agresti, Categorical Data Analysis, 2nd edition,
    # section 10.1): from 59 to 55 %, a difference of -0.04 with interval -0.06 to -0.02; z = -4.17.
    c = compare([1.0] * 944 + [0.0] * 656, [1.0] * 794 + [0.0] * 150 + [1.0] * 86 + [0.0] * 570)
    assert (round(c.difference, 2), round(c.low, 2), round(c.high, 2)) == (-0.04, -0.06, -0.02)
    assert (c.gained, c.lost, c.test) == (86, 150, "exact McNemar")
    assert c.p_value == pytest.approx(statsmodels_mcnemar([[794, 150], [86, 570]], exact=True).pvalue)
    assert c.p_value == pytest.approx(2 * norm.sf(4.17), rel=0.3)  # the normal approximation's, far out in the tail


def test_mcnemar_is_exact() -> None:
    # 8 gained, 2 lost: two-sided binomial p = 2 * (1 + 10 + 45) / 1024.
    assert mcnemar(8, 2) == pytest.approx(112 / 1024)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) > 0.05 > mcnemar(6, 0)


def test_the_paired_bootstrap_is_scipys() -> None:
    # scipy resamples pairs when told so; here the differences are resampled, with the same draws.
    rng = np.random.default_rng(3)
    a, b = rng.binomial(8, 0.5, 150) / 8, rng.binomial(8, 0.6, 150) / 8
    theirs = bootstrap(
        (a, b), lambda x, y, axis: y.mean(axis=axis) - x.mean(axis=axis), paired=True, vectorized=True, batch=512,
        n_resamples=9_999, method="percentile", rng=np.random.default_rng(7),
    ).confidence_interval  # fmt: skip
    assert bootstrap_interval(b - a, seed=7) == pytest.approx(tuple(theirs), abs=1e-12)
    wide, narrow = bootstrap_interval(b - a, alpha=0.01), bootstrap_interval(b - a)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_sign_flips_by_counting_every_sign() -> None:
    found = np.array([0.5, -0.125, 0.25, 0.375, 0.125, -0.25, 0.5, 0.625])
    means = [abs(np.dot(signs, found)) for signs in itertools.product((-1, 1), repeat=len(found))]
    assert sign_flip_p_value(found) == pytest.approx(np.mean(np.array(means) >= abs(found.sum()) - 1e-12))
    # With whole differences the sign-flip test is McNemar's.
    assert sign_flip_p_value(differences(8, 2, 12)) == pytest.approx(mcnemar(8, 2), abs=0.01)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_pass_at_k_by_drawing_every_subset(k: int) -> None:
    samples, right = 5, [0, 1, 2, 5]
    solved = [
        np.mean([any(chosen) for chosen in itertools.combinations([True] * c + [False] * (samples - c), k)]) for c in right
    ]
    assert pass_at_k(right, samples, k) == pytest.approx(np.mean(solved))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_power_of_mcnemar_by_counting_every_outcome() -> None:
    # 8 problems, 6 of 10 differ, a difference of 0.5: every outcome of the multinomial, tested by scipy's binomial test.
    n, share, effect = 8, 0.6, 0.5
    up, down = (share + effect) / 2, (share - effect) / 2
    power = sum(
        math.comb(n, g) * math.comb(n - g, lost) * up**g * down**lost * (1 - share) ** (n - g - lost)
        for g in range(n + 1) for lost in range(n + 1 - g) if mcnemar(g, lost) < 0.05
    )  # fmt: skip
    assert mcnemar_power(n, share, effect) == pytest.approx(power, rel=1e-9)
