"""What a rollout says about its step, and which rollouts may not be trained on."""

import math
import types

import pytest
import torch

from gptoss_rl.errors import GateError
from gptoss_rl.run.rollouts import (
    check_policy_version,
    check_rollout_log_probs,
    rollout_statistics,
)
from gptoss_rl.training.parity import check_parity, difference_statistics, parity_statistics, token_positions


def sample(reward: float, length: int = 10, version: int = 1, truncated: bool = False):
    info = {
        "policy_version": torch.tensor([version]),
        "response_length": torch.tensor([length]),
        "total_length": torch.tensor([float(length + 5)]),
        "truncated": torch.tensor([truncated]),
        "answer_found": torch.tensor([1.0]),
        "final_channel": torch.tensor([0.0]),
    }
    return types.SimpleNamespace(rewards=torch.tensor([reward]), info=info)


def test_samples_of_another_policy_are_refused() -> None:
    check_policy_version([sample(1.0), sample(0.0)], expected=1)
    with pytest.raises(GateError, match=r"1 of 2 samples come from policy version \[0\], expected 1"):
        check_policy_version([sample(1.0), sample(0.0, version=0)], expected=1)


@pytest.mark.parametrize(
    ("log_probs", "fault"),
    [
        ([[0.0, -1.0, math.nan]], "a logprob of the sampler is not finite"),
        ([[0.0, -1.0, -math.inf]], "a logprob of the sampler is not finite"),
        ([[0.0, -1.0]], "the sampler did not give one logprob a token"),
        (None, "the sampler did not give one logprob a token"),
    ],
)
def test_a_sample_without_a_logprob_for_every_token_is_refused(log_probs: list | None, fault: str) -> None:
    def scored(values: list | None) -> types.SimpleNamespace:
        tensor = None if values is None else torch.tensor(values)
        return types.SimpleNamespace(rollout_log_probs=tensor, action_mask=torch.tensor([[0, 1, 1]]))

    good = scored([[math.nan, -1.0, 0.0]])  # prompt tokens have none
    check_rollout_log_probs([good])
    with pytest.raises(GateError, match=f"1 of 2 samples are unusable: {fault}"):
        check_rollout_log_probs([good, scored(log_probs)])


def test_an_engine_that_leaves_out_a_logprob_does_not_count_as_certain() -> None:
    # The installed, patched executor, with an engine that names another token than the one it sampled.
    import asyncio

    from openrlhf.utils.agent import SingleTurnAgentExecutor
    from vllm import SamplingParams

    chosen = types.SimpleNamespace(logprob=-0.5)
    output = types.SimpleNamespace(token_ids=[7, 8], finish_reason="stop", logprobs=[{7: chosen}, {9: chosen}])

    class Engine:
        async def generate(self, *_args, **_kwargs):
            return types.SimpleNamespace(outputs=[output], policy_version=1)

    class Tokenizer:
        def __call__(self, *_args, **_kwargs):
            return {"input_ids": torch.tensor([[1, 2]])}

        def decode(self, *_args, **_kwargs):
            return ""

    executor = SingleTurnAgentExecutor()
    answer = asyncio.run(executor.execute("p", "1", SamplingParams(logprobs=1, max_tokens=4), 16, Tokenizer(), Engine()))
    assert answer["rollout_log_probs"][2] == -0.5
    assert math.isnan(answer["rollout_log_probs"][3])


def test_the_reward_distribution_is_counted_by_group() -> None:
    rewards = [1, 1, 0, 0, 1, 0, 0, 1]  # groups of two: all right, all wrong, mixed, mixed
    statistics = rollout_statistics([sample(float(r)) for r in rewards], group_size=2)
    assert statistics["reward/mean"] == 0.5
    assert statistics["reward/all_right"] == 0.25
    assert statistics["reward/all_wrong"] == 0.25
    assert statistics["reward/std"] == 0.5


def test_a_step_without_any_right_sample_has_no_group_that_is_all_right() -> None:
    statistics = rollout_statistics([sample(0.0) for _ in range(4)], group_size=2)
    assert (statistics["reward/all_right"], statistics["reward/all_wrong"]) == (0.0, 1.0)


def test_lengths_and_truncation() -> None:
    samples = [sample(1.0, 4), sample(1.0, 8, truncated=True)]
    statistics = rollout_statistics(samples, group_size=2)
    assert statistics["rollout/response_tokens_mean"] == 6.0
    assert statistics["rollout/response_tokens_max"] == 8.0
    assert statistics["rollout/truncated"] == 0.5
    assert statistics["rollout/total_tokens"] == 22.0


def statistics_of(differences: torch.Tensor) -> dict[str, float]:
    return difference_statistics(differences, torch.arange(len(differences)))


def test_the_kl_estimate_converges_to_the_true_kl() -> None:
    # Two Bernoulli policies: KL(sampler || trainer) is known in closed form.
    generator = torch.Generator().manual_seed(0)
    p, q = 0.3, 0.4
    draws = torch.rand(400_000, generator=generator) < p
    sampler = torch.where(draws, math.log(p), math.log(1 - p))
    trainer = torch.where(draws, math.log(q), math.log(1 - q))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert statistics_of(trainer - sampler)["parity/kl"] == pytest.approx(expected, rel=0.02)


def test_only_response_tokens_are_compared() -> None:
    experience = types.SimpleNamespace(
        action_log_probs=torch.tensor([[9.0, -1.0, -2.0]]),
        rollout_log_probs=torch.tensor([[0.0, -1.5, -2.0]]),
        action_mask=torch.tensor([[0, 1, 1]]),
    )
    assert parity_statistics([experience])["parity/abs_diff_mean"] == 0.25


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_a_trainer_that_disagrees_with_the_sampler_stops_the_run(difference: float) -> None:
    statistics = statistics_of(torch.full((10,), difference))
    with pytest.raises(GateError, match=r"step 3: .*parity/abs_diff_mean.*--parity_max_abs_diff"):
        check_parity(statistics, 0.2, 0.05, "step 3")
    check_parity(statistics_of(torch.full((10,), 0.01)), 0.2, 0.05, "step 3")


def test_one_odd_token_among_few_does_not_stop_a_run() -> None:
    # 64 tokens of a step in which one group had variance; one of them 3 nats off: KL 0.06, allowed 0.01.
    odd = torch.zeros(64)
    odd[7] = -3.0
    statistics = statistics_of(odd)
    assert statistics["parity/kl"] > 0.03
    check_parity(statistics, 0.05, 0.01, "step 3")
    # As many tokens of a sampler that serves another model do.
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(GateError, match="parity"):
        check_parity(statistics_of(0.5 * torch.randn(64, generator=generator)), 0.05, 0.01, "step 3")


def test_a_difference_that_grows_with_the_position_is_not_averaged_away() -> None:
    # What RoPE's frequencies in bf16 do: little at first, much late. The mean alone would pass.
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(2000).repeat(4)
    differences = torch.randn(8000, generator=generator) * (0.02 + 0.25 * (positions / 2000) ** 2)
    statistics = difference_statistics(differences, positions)
    assert statistics["parity/abs_diff_mean"] < 0.1 < statistics["parity/abs_diff_late"]
    assert statistics["parity/abs_diff_early"] < 0.03
    with pytest.raises(GateError, match=r"parity/abs_diff_late = .*other RoPE frequencies"):
        check_parity(statistics, 0.1, 0, "step 3")


def test_positions_are_those_of_the_masked_tokens() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]])
    assert token_positions(mask).tolist() == [1, 2, 0, 3]


def test_a_figure_that_is_not_a_number_stops_the_run_however_few_tokens() -> None:
    with pytest.raises(GateError, match="nan"):
        check_parity(statistics_of(torch.tensor([float("nan")])), 0.05, 0.01, "step 3")
