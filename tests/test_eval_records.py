"""What one line of an evaluation says, in training and after it: the same of the same response."""

import types

import pytest
import torch

from gptoss_rl.prompts import problem_id, render_prompt
from gptoss_rl.run.rollouts import sample_record

RIGHT, WRONG = "<|channel|>final<|message|>\\boxed{7}", "<|channel|>final<|message|>\\boxed{8}"

CASES = [(RIGHT, False, True), (RIGHT, True, False), (WRONG, False, False)]


class Letters:
    """A tokenizer whose tokens are characters."""

    def decode(self, tokens, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return "".join(chr(token) for token in tokens)


def in_training(response: str, cut_off: bool) -> dict:
    tokens = torch.tensor([[1, 1, *map(ord, response)]])
    info = {"response_length": torch.tensor([len(response)]), "truncated": torch.tensor([cut_off]), "policy_version": 3}
    sample = types.SimpleNamespace(
        sequences=tokens,
        action_mask=torch.tensor([[0, *[1] * len(response)]]),  # of predictions: one shorter than the sequence
        prompts=[render_prompt("What is 3 + 4?")],
        labels=["7"],
        rewards=torch.tensor([float(response == RIGHT)]),
        info=info,
    )
    return sample_record(sample, Letters(), 5)


@pytest.mark.parametrize(("response", "cut_off", "correct"), CASES)
def test_a_response_that_was_cut_off_is_wrong_in_training(response: str, cut_off: bool, correct: bool) -> None:
    row = in_training(response, cut_off)
    assert (row["response"], row["id"]) == (response, problem_id("What is 3 + 4?"))
    assert row["correct"] is correct
    assert row["reward"] == float(response == RIGHT)  # the reward that training saw stays what it was
    assert row["finish_reason"] == ("length" if cut_off else "stop")
