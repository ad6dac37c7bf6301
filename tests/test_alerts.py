"""Alerts fire on what they are for, on averages and not on one odd step, and follow the limits that the run has."""

import math

import pytest
from made_run import metrics_line

from gptoss_rl.metrics import METRICS
from gptoss_rl.watch import alerts as module
from gptoss_rl.watch.alerts import RULES, alerts


def steps(count: int = 40, **changes) -> list[dict]:
    """`changes` are functions of the step."""
    return [metrics_line(i, float(i), **{k: f(i) for k, f in changes.items()}) for i in range(count)]


# Rule -> what sets it off, and what it says.
CASES = {
    "not_a_number": ({"loss/policy": lambda i: math.nan if i == 35 else 0.1}, "loss/policy"),
    "reward_collapse": ({"reward/mean": lambda i: 0.6 if i < 25 else 0.1}, "0.100 over the last 10 steps, 0.600"),
    "entropy_collapse": ({"policy/entropy": lambda i: 0.5 if i < 20 else 0.01}, "0.0100 nats"),
    "mismatch": ({"parity/kl": lambda i: 0.02}, "KL 0.02 nats a token, above 0.01 for 3 steps; the run's limit is 0.015"),
    "mismatch_by_position": (
        {"parity/abs_diff_early": lambda i: 0.06, "parity/abs_diff_late": lambda i: 0.2},
        "0.200 nats, 0.060 at early ones",
    ),
    "masked_away": ({"mismatch/masked": lambda i: 0.8}, "sets 80% of the trained tokens to 0"),
    "truncation_rising": ({"rollout/truncated": lambda i: 0.05 if i < 20 else 0.4}, "40% of responses"),
    "nothing_to_learn": ({"reward/all_wrong": lambda i: 0.95}, "nothing to learn"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_rule_fires_on_what_it_is_for_and_alone(name: str) -> None:
    changes, message = CASES[name]
    (found,) = alerts(steps(**changes), "running")
    assert message in found
    assert getattr(module, name)(steps(**changes), {}) == found


def test_every_rule_is_tested_and_says_why_it_is_one() -> None:
    assert set(CASES) == {rule.__name__ for rule in RULES}
    assert all(rule.__doc__ for rule in RULES)


def test_a_healthy_run_is_quiet() -> None:
    assert alerts(steps(), "running") == []
    assert alerts([], "starting") == []


def test_one_odd_step_raises_no_alarm() -> None:
    assert alerts(steps(**{"reward/mean": lambda i: 0.0 if i == 39 else 0.6}), "running") == []
    assert alerts(steps(**{"parity/kl": lambda i: 0.9 if i == 39 else 1e-4}), "running") == []


@pytest.mark.parametrize("key", METRICS)
def test_the_error_of_a_mean_over_one_may_be_infinite_and_nothing_may_be_a_nan(key: str) -> None:
    infinite = module.not_a_number(steps(**{key: lambda i: math.inf}), {})
    assert (infinite is None) == key.endswith(("/se", "_se")) == METRICS[key].may_be_infinite
    assert module.not_a_number(steps(**{key: lambda i: math.nan}), {}) == f"not a number: {key}"


@pytest.mark.parametrize(
    ("config", "fires"),
    [
        ({}, True),
        ({"max_mismatch_kl": 0.03, "parity_max_kl": 0.05}, False),
        ({"max_mismatch_kl": 0.03, "parity_max_kl": 0.01}, True),
        ({"max_mismatch_kl": 0.0, "parity_max_kl": 0.0}, True),  # gates that are off: the default is still worth a word
    ],
)
def test_drift_is_measured_against_the_limits_of_the_run(config: dict, fires: bool) -> None:
    found = alerts(steps(**{"parity/kl": lambda i: 0.012}), "running", config)
    assert bool(found) == fires


@pytest.mark.parametrize("state", ["stalled", "stopped", "crashed"])
def test_a_state_that_wants_somebody_comes_first(state: str) -> None:
    assert alerts(steps(**CASES["mismatch"][0]), state)[0].startswith(f"{state}: ")
