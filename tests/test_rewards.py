"""A reward is a finite float, or the run stops with the prompt's id."""

import asyncio
import time

import pytest
import torch

from gptoss_rl.errors import RewardError
from gptoss_rl.prompts import problem_id, render_prompt
from gptoss_rl.run.rewards import EXTRA_LOG_KEYS, fixed_extra_logs, read_reward, score_response

PROBLEM = "What is 2 + 2?"


def score(reward_func, timeout: float = 5.0) -> dict:
    return asyncio.run(score_response(reward_func, prompt=render_prompt(PROBLEM), response="4", label="4", timeout=timeout))


def raises(queries, prompts, labels):
    raise ZeroDivisionError("boom")


def hangs(queries, prompts, labels):
    time.sleep(1.5)
    return {"rewards": [1.0]}


@pytest.mark.parametrize(
    ("reward_func", "words"),
    [
        (raises, "raised ZeroDivisionError: boom"),
        (lambda q, p, labels: None, "returned NoneType"),
        (lambda q, p, labels: [1.0], "returned list"),
        (lambda q, p, labels: {}, "reward is None"),
        (lambda q, p, labels: {"rewards": [None]}, "not a finite number"),
        (lambda q, p, labels: {"rewards": [float("nan")]}, "not a finite number"),
        (lambda q, p, labels: {"rewards": torch.tensor([float("inf")])}, "not a finite number"),
        (lambda q, p, labels: {"rewards": ["1.0"]}, "not a finite number"),
        (lambda q, p, labels: {"rewards": [1.0, 0.0]}, "not a finite number"),
        (lambda q, p, labels: {"rewards": [1.0], "scores": [float("nan")]}, "score"),
    ],
)
def test_a_reward_that_fails_stops_the_run(reward_func, words: str) -> None:
    with pytest.raises(RewardError, match=words) as caught:
        score(reward_func)
    assert problem_id(PROBLEM) in str(caught.value)


def test_a_reward_that_hangs_stops_the_run() -> None:
    with pytest.raises(RewardError, match=r"longer than 0\.1 s .*--reward_timeout"):
        score(hangs, timeout=0.1)


@pytest.mark.parametrize("value", [0, 0.0, [0.0], torch.tensor([0]), torch.tensor(0.0), False])
def test_a_score_of_zero_is_kept(value) -> None:
    read = read_reward({"rewards": [1.0], "scores": value}, "here")
    assert (read["reward"], read["scores"]) == (1.0, 0.0)


def test_without_a_score_the_reward_is_the_score() -> None:
    assert read_reward({"rewards": torch.tensor([0.5])}, "here")["scores"] == 0.5


def test_extra_logs_are_a_fixed_numeric_set() -> None:
    logs = {"answer_found": torch.tensor([1]), "final_channel": "yes", "words": ["a"], "none": None}
    fixed = fixed_extra_logs(logs)
    assert fixed == {"answer_found": 1.0, "final_channel": 0.0}
    assert set(fixed_extra_logs(None)) == set(EXTRA_LOG_KEYS)
    assert fixed_extra_logs({"answer_found": float("nan")})["answer_found"] == 0.0


def test_the_function_sees_prompt_and_response_as_one_text() -> None:
    seen = []

    def reward_func(queries, prompts, labels):
        seen.append((queries, prompts, labels))
        return {"rewards": [1.0]}

    score(reward_func)
    [(queries, prompts, labels)] = seen
    assert queries == [prompts[0] + "4"]
    assert labels == ["4"]
