"""Ratio statistics, the clipped loss of the patched package, and the finite gate on the loss."""

import pytest
import torch

from gptoss_rl.errors import GateError
from gptoss_rl.training.step_metrics import RatioStatistics, StepMetrics, clip_log_ratio, quantile


def policy_loss(**options):
    from openrlhf.models.loss import PolicyLoss

    return PolicyLoss(**options)


def test_a_huge_log_ratio_does_not_overflow_the_loss() -> None:
    new = torch.tensor([[0.0, 200.0]], requires_grad=True)
    old, advantages, mask = torch.zeros(1, 2), torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2)
    unclipped, *_ = policy_loss()(new, old, advantages, action_mask=mask)
    assert not torch.isfinite(unclipped)
    clipped, *_ = policy_loss(log_ratio_clip=20.0)(new, old, advantages, action_mask=mask)
    assert torch.isfinite(clipped)


def test_inside_the_limit_the_loss_is_upstreams() -> None:
    torch.manual_seed(0)
    new, old = torch.randn(2, 5), torch.randn(2, 5)
    advantages, mask = torch.randn(2, 5), torch.ones(2, 5)
    with_clip, *_ = policy_loss(log_ratio_clip=20.0)(new, old, advantages, action_mask=mask)
    without, *_ = policy_loss()(new, old, advantages, action_mask=mask)
    assert torch.equal(with_clip, without)


def test_ppo_kl_is_the_policys_under_correction() -> None:
    new, old, sampler = torch.full((1, 4), -1.0), torch.full((1, 4), -1.5), torch.full((1, 4), -3.0)
    loss = policy_loss(enable_vllm_is_correction=True, vllm_is_truncated_threshold=[0.5, 5.0])
    _, _, ppo_kl, vllm_kl = loss(new, old, torch.ones(1, 4), action_mask=torch.ones(1, 4), rollout_log_probs=sampler)
    assert ppo_kl.item() == pytest.approx(-0.5)  # old minus new, not old minus sampler
    assert vllm_kl.item() == pytest.approx(-1.5)


def test_clip_fractions_count_only_where_the_clip_stops_the_gradient() -> None:
    log_ratio = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.0]])
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0, 1.0]])
    statistics = RatioStatistics.of(log_ratio, torch.ones(1, 5), advantages, 0.2, 0.2)
    assert (statistics.clipped_high, statistics.clipped_low) == (1, 1)


def test_zero_switches_the_clip_off() -> None:
    values = torch.tensor([-50.0, 50.0])
    assert torch.equal(clip_log_ratio(values, 0.0), values)
    assert clip_log_ratio(values, 20.0).tolist() == [-20.0, 20.0]


def fill(metrics: StepMetrics) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    advantages = torch.tensor([[0.5, 0.5, 0.0], [-0.5, -0.5, -0.5]])
    log_ratio = torch.tensor([[0.1, -0.1, 9.0], [0.3, 0.0, 0.0]])
    metrics.add_ratios(RatioStatistics.of(log_ratio, mask, advantages, 0.2, 0.2))
    metrics.add_micro_batch(torch.tensor(0.1), advantages, mask, torch.tensor([[1.0, 1.0, 7.0], [2.0, 2.0, 2.0]]))
    metrics.add_optimizer_step(3.0, 1e-3)


def test_statistics_of_a_step_leave_padding_out_and_start_afresh() -> None:
    metrics = StepMetrics()
    fill(metrics)
    reduced = metrics.reduce()
    assert reduced["ratio/log_ratio_max"] == pytest.approx(0.3)
    assert reduced["policy/entropy"] == pytest.approx(8 / 5)
    assert (reduced["advantage/mean"], reduced["advantage/std"]) == (0.0, 0.5)
    assert (reduced["optimizer/gradient_norm"], reduced["optimizer/learning_rate"]) == (3.0, 1e-3)
    fill(metrics)
    assert metrics.reduce() == reduced


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(loss: float) -> None:
    with pytest.raises(GateError, match="finite.*weights are untouched"):
        StepMetrics().add_micro_batch(torch.tensor(loss), torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))


def test_the_quantile_of_known_values() -> None:
    assert quantile(torch.arange(1000.0), 0.99) == 990.0
