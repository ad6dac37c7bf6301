"""One evaluation: tiers, and intervals that cover what they say they cover, also where few problems say anything."""

import numpy as np
import pytest

from gptoss_rl.stats import StatsError, pass_at_every_k, pass_at_k, score, tier_label, tier_of


@pytest.mark.parametrize(("n", "error"), [(1000, 0.015), (200, 0.034), (18, 0.112)])
def test_standard_errors_of_the_tiers(n: int, error: float) -> None:
    right = round(0.65 * n)
    assert score([1.0] * right + [0.0] * (n - right)).standard_error == pytest.approx(error, abs=0.002)


def test_tiers_are_data() -> None:
    names = [tier_of(n).name for n in (1000, 202, 200, 48, 18)]
    assert names == ["primary", "stability", "stability", "sanity only", "sanity only"]
    # The figures that sets were chosen by: OOD-1000, ID-200 and AIME-18.
    assert [tier_label(n) for n in (1000, 200, 18)] == ["primary, ±1.5 %", "stability, ±3.4 %", "sanity only, ±11.2 %"]
    assert [tier_of(n).ranks_models for n in (1000, 200, 18)] == [True, True, False]
    with pytest.raises(StatsError, match="no problems"):
        tier_of(0)


def test_a_tier_is_that_of_the_set_and_no_better_than_its_size() -> None:
    assert tier_of(1000, "data/probe_set_1000_ood.jsonl").name == "primary"
    assert tier_of(120, "data/probe_set_1000_ood.jsonl").name == "stability"  # --limit 120
    assert tier_of(200, "probe_set_200").name == "stability"
    assert tier_of(18, "aime_eval").name == tier_of(900, "aime_eval").name == "sanity only"
    # Training data are not primary, however many.
    assert tier_of(3200, "data/sft_rl_pool_3200.jsonl").name == "stability"
    assert tier_label(1000, "sft_rl_pool") == "stability, ±1.5 %"


def test_an_interval_of_nothing_or_everything_is_not_a_point() -> None:
    assert score([0.0] * 50).high == pytest.approx(0.0713, abs=1e-3)
    assert score([1.0] * 50).low == pytest.approx(1 - 0.0713, abs=1e-3)


def test_samples_of_one_problem_are_a_cluster() -> None:
    # Eight samples that always agree carry the information of one: the error must be that of n problems, not 8 n samples.
    shares = [0.5 + 0.5 * (-1) ** i * 0.999 for i in range(100)]
    assert score(shares).standard_error == pytest.approx(0.05, rel=0.02)


def test_several_samples_are_worth_at_most_as_many_as_were_drawn() -> None:
    # No problem differs from another: the variance of their means is 0, that of 1,600 independent samples is not.
    for shares in ([3 / 8] * 200, [3 / 8] * 199 + [4 / 8]):
        s = score(shares)
        assert s.high - s.low == pytest.approx(2 * 1.97 * (0.375 * 0.625 / 1600) ** 0.5, rel=0.02)


def test_one_right_sample_hardly_narrows_an_interval() -> None:
    none, one = score([0.0] * 200), score([1 / 8] + [0.0] * 199)
    assert none.high == pytest.approx(0.0188, abs=1e-4)
    assert none.high / 2 < one.high < none.high
    assert score([0.5]).high - score([0.5]).low == 1  # one problem says nothing


def test_nothing_cannot_be_scored() -> None:
    with pytest.raises(StatsError, match="no problems"):
        score([])


def test_pass_at_k_by_counting() -> None:
    # 4 samples, 1 right: of the 6 pairs, 3 hold it.
    assert pass_at_k([1], 4, 2) == 0.5
    assert pass_at_k([0, 4], 4, 3) == 0.5
    with pytest.raises(StatsError, match="pass@5"):
        pass_at_k([1], 4, 5)


def test_every_pass_at_k_has_an_interval_and_that_of_all_samples_is_among_them() -> None:
    right = [0, 1, 2, 3] * 25
    found = pass_at_every_k(right, 3)
    assert list(found) == [1, 2, 3]
    assert [s.mean for s in found.values()] == pytest.approx([pass_at_k(right, 3, k) for k in found])
    assert all(s.low < s.mean < s.high for s in found.values())
    assert found[3] == score([0.0, 1.0, 1.0, 1.0] * 25)  # one right sample of three is enough
    assert list(pass_at_every_k([4], 8)) == [1, 2, 4, 8]


@pytest.mark.parametrize("n", [200, 1000])
def test_intervals_cover_what_they_say(n: int) -> None:
    rng, covered, runs = np.random.default_rng(n), 0, 2000
    for right in rng.binomial(n, 0.65, runs):
        s = score([1.0] * right + [0.0] * (n - right))
        covered += s.low <= 0.65 <= s.high
    assert 0.935 <= covered / runs <= 0.965


@pytest.mark.parametrize(
    ("n", "samples", "a", "b"),
    [(200, 8, 1.3, 0.7), (200, 8, 0.02, 1), (1000, 16, 0.005, 1), (48, 16, 0.05, 1), (18, 16, 0.3, 0.7)],
)
def test_clustered_intervals_cover_at_the_edges_too(n: int, samples: int, a: float, b: float) -> None:
    # Solve rates drawn from Beta(a, b). The normal interval covers 95, 90, 91, 87 and 93 %. 1,000 runs: standard error 0.7.
    rng, covered, runs = np.random.default_rng(n), 0, 1000
    for _ in range(runs):
        s = score(rng.binomial(samples, rng.beta(a, b, n)) / samples)
        covered += s.low <= a / (a + b) <= s.high
    assert 0.925 <= covered / runs <= 0.98
