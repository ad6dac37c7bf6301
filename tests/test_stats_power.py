"""What so many problems can show: found as often as printed, and nothing promised that cannot be."""

import numpy as np
import pytest

from gptoss_rl.stats import StatsError, compare, detectable_mcnemar, mcnemar, mcnemar_power, problems_needed, report
from gptoss_rl.stats.power import MOST_PROBLEMS
from gptoss_rl.stats.words import what_a_difference_needs, what_problems_show


@pytest.mark.parametrize(("n", "share"), [(200, 0.3), (400, 0.18), (1000, 0.1)])
def test_the_printed_effect_is_found_with_the_printed_power(n: int, share: float) -> None:
    rng, found, runs = np.random.default_rng(7), 0, 2000
    effect = detectable_mcnemar(n, share)
    up, down = (share + effect) / 2, (share - effect) / 2
    for _ in range(runs):
        kind = rng.random(n)
        found += mcnemar(int((kind < up).sum()), int(((kind >= up) & (kind < up + down)).sum())) < 0.05
    assert 0.78 <= found / runs <= 0.82
    # What a comparison prints is this effect at the share that was seen.
    lost, gained = round(n * down), round(n * up)
    c = compare([1.0] * lost + [0.0] * (n - lost), [0.0] * lost + [1.0] * gained + [0.0] * (n - lost - gained))
    assert c.detectable == pytest.approx(detectable_mcnemar(n, (gained + lost) / n))


def test_so_is_that_of_several_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_rl.stats.comparison.RESAMPLES", 999)

    def draw(rng: np.random.Generator, by: float):
        rates = rng.beta(1.3, 0.7, 200)  # mean 0.65, so that 0.35 are left
        return compare(rng.binomial(8, rates) / 8, rng.binomial(8, rates + by * (1 - rates)) / 8)

    rng = np.random.default_rng(5)
    printed = np.mean([draw(rng, 0.1).detectable for _ in range(30)])
    found = np.mean([draw(rng, printed / 0.35).p_value < 0.05 for _ in range(400)])
    assert 0.74 <= found <= 0.86  # 400 runs: standard error 2 points


def test_three_problems_show_nothing() -> None:
    c = compare([1.0, 1.0, 0.0], [1.0, 1.0, 0.0])
    assert c.detectable is None
    assert "3 problems are too few to find any difference" in report(c)
    assert "nothing can be found; 6 problems must differ" in what_problems_show(5, 0.15)


def test_a_plan_promises_nothing_that_so_few_differing_problems_cannot_show() -> None:
    # 15 % of 18 are 3 problems, of which not even all one way are significant.
    said = what_problems_show(18, 0.15)
    assert "no difference is found with 80 % probability; 40.4 % must differ, all one way" in said
    rng = np.random.default_rng(0)
    assert (rng.binomial(18, 0.404, 20_000) >= 6).mean() == pytest.approx(0.8, abs=0.02)
    assert "no difference is found" in what_problems_show(1000, 0.001)
    for share in (0.15, 0.5, 1.0):  # an effect is never above the share of problems that differ
        said = what_problems_show(1000, share)
        assert float(said.split(": ")[1].split(" points")[0]) <= 100 * share


def test_problems_needed_is_the_inverse_of_what_can_be_detected() -> None:
    n = problems_needed(0.03, 0.2)
    assert mcnemar_power(n, 0.2, 0.03) >= 0.8 > mcnemar_power(int(0.97 * n), 0.2, 0.03)
    assert detectable_mcnemar(n, 0.2) == pytest.approx(0.03, rel=0.02)
    assert problems_needed(1.0, 1.0) <= 10
    for effect in (0.3, 0.0, float("nan")):
        with pytest.raises(StatsError, match="at least as many"):
            problems_needed(effect, 0.2)


def test_a_plan_is_bounded() -> None:
    assert what_a_difference_needs(0.0004, 0.15).startswith("0.04 points are found with 80 % probability on 7,")
    for effect in (0.0003, 1e-9, 1e-200):
        with pytest.raises(StatsError, match="needs more than 10,000,000 problems"):
            problems_needed(effect, 0.15)
    assert "0.03 points" in what_problems_show(MOST_PROBLEMS, 0.15)
    with pytest.raises(StatsError, match="at most 10,000,000 problems"):
        what_problems_show(MOST_PROBLEMS + 1, 0.15)
