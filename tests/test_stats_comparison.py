"""Two evaluations: intervals that cover, words that say no more than test and interval do, the best of several."""

import json
import re
from functools import cache

import numpy as np
import pytest
from scipy.stats import norm

from gptoss_rl.stats import Comparison, StatsError, compare, conclusion, corrected, report


@cache
def table(gained: int, lost: int, n: int = 200) -> Comparison:
    """One sample a problem; half of the problems on which the models agree are right."""
    same = [float(i % 2) for i in range(n - gained - lost)]
    return compare([0.0] * gained + [1.0] * lost + same, [1.0] * gained + [0.0] * lost + same)


def test_no_difference_at_all_and_a_clear_one() -> None:
    same = table(0, 0, 100)
    assert same.p_value == 1.0
    assert same.low < 0 < same.high
    assert conclusion(table(50, 0, 100)).startswith("B is better than A: by 50.0 points, 95 % interval +")
    assert conclusion(table(0, 30, 60)).startswith("B is worse than A: by 50.0 points")
    assert "at each end the wider of paired bootstrap and Agresti-Min" in report(same)


def test_several_samples_use_a_permutation_test() -> None:
    rng = np.random.default_rng(0)
    a = rng.binomial(8, 0.5, 100) / 8
    c = compare(a, np.clip(a + 0.125, 0, 1))
    assert c.test == "sign-flip permutation"
    assert c.p_value < 0.001
    assert compare(a, rng.permutation(a)).p_value > 0.05


def test_unequal_lengths_are_not_compared() -> None:
    with pytest.raises(StatsError, match="2 and 1"):
        compare([1.0, 0.0], [1.0])


def test_models_that_agree_everywhere_may_still_differ() -> None:
    # No discordant pair in 200: resampling would say that the difference is exactly 0.
    c, margin = table(0, 0), norm.ppf(0.975) / 202  # half a problem in each cell: variance of the difference 1 / 202^2
    assert (c.low, c.high) == pytest.approx((-margin, margin))
    assert "a gain of more than 1.0 points" in conclusion(c)
    rng = np.random.default_rng(0)  # with the printed effect as the true one, at least six problems differ in 80 % of draws
    assert (rng.binomial(200, c.detectable, 20_000) >= 6).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("shares", [[0.5] * 200, [i % 9 / 8 for i in range(200)]])
def test_so_may_models_whose_samples_are_right_equally_often(shares: list[float]) -> None:
    c = compare(shares, shares)
    assert (c.low, c.high) == pytest.approx((-0.0097, 0.0097), abs=1e-4)
    assert c.detectable == table(0, 0).detectable
    almost = compare(shares, [*shares[:-1], shares[-1] + 1 / 8])
    assert almost.high - almost.low >= 0.019
    assert almost.detectable == c.detectable  # one problem that differs says as little as none


def test_a_loss_is_excluded_only_where_the_test_agrees() -> None:
    for gained in range(15):
        for lost in range(4):
            c = table(gained, lost)
            said = conclusion(c)
            excluded = dict(re.findall(r"a (gain|loss) of more than ([\d.]+)", said))
            if c.p_value < 0.05 and c.low > 0:
                assert said.startswith("B is better than A"), (gained, lost)
                continue
            # What is excluded is what lies beyond the interval, never a bound of 0, and never on the side of a 0 left out.
            assert ("loss" in excluded) == (c.low < 0), (gained, lost)
            assert ("gain" in excluded) == (c.high > 0), (gained, lost)
            assert all(float(bound) > 0 for bound in excluded.values()), (gained, lost)
            assert "is better" not in said
            assert "is worse" not in said


@pytest.mark.parametrize(("gained", "lost"), [(1, 0), (3, 0), (6, 1), (8, 2), (10, 3)])
def test_one_way_is_not_proof(gained: int, lost: int) -> None:
    # Resampling 1 gained and 0 lost never gives a loss.
    c = table(gained, lost)
    assert c.p_value > 0.05
    assert c.low < 0 < c.high
    assert "a gain of more than" in conclusion(c)
    assert "a loss of more than" in conclusion(c)


def test_where_interval_and_test_disagree_both_are_said() -> None:
    c = table(5, 0)
    assert (round(c.p_value, 4), c.low > 0) == (0.0625, True)
    assert "the interval leaves 0 out, but p is 0.062. What can be excluded at 95 % is only a gain" in conclusion(c)
    assert "is only a loss" in conclusion(table(0, 5))


@pytest.mark.parametrize(
    ("n", "up", "down", "least", "most"),
    [
        (200, 0.09, 0.03, 0.935, 0.97),
        (200, 0.03, 0.003, 0.92, 0.96),
        (200, 0.01, 0.005, 0.94, 1),
        (1000, 0.002, 0.001, 0.94, 1),
    ],
)
def test_the_paired_interval_covers_what_it_says(
    n: int, up: float, down: float, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptoss_rl.stats.comparison.RESAMPLES", 999)
    # The bootstrap alone covers 85 % in the two last cases.
    drawn = np.random.default_rng(0).multinomial(n, [up, down, 1 - up - down], 2000)
    results = [table(int(gained), int(lost), n) for gained, lost, _ in drawn]
    assert least <= np.mean([c.low <= up - down <= c.high for c in results]) <= most


def test_the_interval_of_several_samples_covers_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_rl.stats.comparison.RESAMPLES", 999)
    rng, covered, runs = np.random.default_rng(1), 0, 400
    for _ in range(runs):
        rates = rng.beta(1.3, 0.7, 200)  # mean 0.65
        c = compare(rng.binomial(8, rates) / 8, rng.binomial(8, rates + 0.1 * (1 - rates)) / 8)
        covered += c.low <= 0.035 <= c.high
    assert 0.92 <= covered / runs <= 0.98  # 400 runs: standard error 1.1 points


def test_the_best_of_several_is_held_to_a_higher_standard() -> None:
    alone = [table(8, 1), table(6, 0), table(3, 2)]
    assert conclusion(alone[0]).startswith("B is better")
    together = corrected(alone)
    assert [c.p_value for c in together] == pytest.approx([3 * 0.03125, 3 * 0.03125, 1.0])  # the smallest is first
    for before, after in zip(alone, together, strict=True):
        assert after.low < before.low < before.high < after.high
        assert after.detectable > before.detectable
        assert after.test == "exact McNemar, Holm over 3"
        assert conclusion(after).startswith("No difference can be told from chance")
    assert "98.3 % interval" in report(together[0])
    assert corrected(alone[:1]) == alone[:1]  # nothing was picked
    assert corrected([]) == []


def test_holm_may_show_what_the_interval_does_not() -> None:
    # 6 gained is Holm's second step, 2 x 0.031 for two of three; its interval is Bonferroni's for three.
    said = [conclusion(c) for c in corrected([table(20, 0), table(19, 0), table(6, 0)])]
    assert said[0].startswith("B is better")
    assert said[2].startswith("The test shows a difference (p = 0.031), the interval does not, so that none is claimed.")


def test_a_comparison_is_json_without_its_problems() -> None:
    told = json.loads(json.dumps(table(8, 1).as_json()))
    assert told["gained"] == 8
    assert "differences" not in told
