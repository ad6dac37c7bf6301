"""What the canary looks at before step 1; with real engines it runs in test_engine_sync.py and test_train_cpu.py."""

import pytest
import torch

from gptoss_rl.canary import check_prompt_parity, response_positions, start_parity
from gptoss_rl.errors import GateError

SEQUENCES, STARTS = [[1, 2, 3, 4, 5], [6, 7, 8]], [3, 1]  # (token ids, index of the first response token)


def test_scored_tokens_start_with_the_second_of_each_sequence() -> None:
    assert response_positions(SEQUENCES, STARTS).tolist() == [False, False, True, True, True, True]


def test_prompts_and_responses_are_judged_apart() -> None:
    # A difference that confident responses hide must not be averaged away.
    differences = torch.tensor([0.6, -0.4, 0.001, 0.0, -0.001, 0.002])
    figures = start_parity(differences, response_positions(SEQUENCES, STARTS))
    assert figures["prompt_abs_diff_mean"] == pytest.approx(0.5)
    assert figures["parity/abs_diff_mean"] == pytest.approx(0.001)


@pytest.mark.parametrize("difference", [0.11, float("nan"), float("inf")])
def test_a_difference_on_prompts_stops_the_run(difference: float) -> None:
    with pytest.raises(GateError, match=r"gate parity.*allowed 0\.1 \(--parity_max_prompt_abs_diff\).*without sinks"):
        check_prompt_parity(difference, 0.1)
    check_prompt_parity(difference, 0.0)  # off
    check_prompt_parity(0.09, 0.1)
