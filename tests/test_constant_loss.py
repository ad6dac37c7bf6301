"""The Dr. GRPO gradient: the paper's, however samples are dealt, and nobody's business but the samples'."""

import shutil
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from planned import (
    GROUP,
    MAX_RESPONSE,
    REWARDS,
    gradients,
    make_plans,
    make_samples,
    paper_gradients,
    relative_error,
    run_on_rank,
    training,
)

from gptoss_rl.errors import GateError
from gptoss_rl.flags import ParityLimits
from gptoss_rl.models.random_model import random_adapter
from gptoss_rl.training.actor_step import adapter_disabled
from gptoss_rl.training.logprob_head import install_log_prob_head
from gptoss_rl.training.policy import response_log_probs
from gptoss_rl.training.policy_loss import CORRECTIONS, DEFAULT_BOUNDS, LossOptions, constant_loss, importance_weights
from gptoss_rl.training.train_plan import group_advantages

ADVANTAGES = group_advantages(REWARDS, GROUP)
TOLERANCE = 1e-5
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def policy(gpt_oss_folder: Path) -> torch.nn.Module:
    return random_adapter(gpt_oss_folder, rank=4).train()


@pytest.fixture(scope="module")
def samples(policy) -> list:
    return make_samples(len(REWARDS), policy.config.vocab_size)


@pytest.fixture(scope="module")
def wanted(policy, samples) -> dict[str, torch.Tensor]:
    return paper_gradients(policy, samples, ADVANTAGES)


def planned_gradients(policy, samples, *, old_logprobs="current", advantages=ADVANTAGES, loss=None, **plan):
    policy.zero_grad()
    (rank_plan,) = make_plans(samples, advantages, **plan)
    assert len(rank_plan.steps) == 1
    figures = training(policy, len(samples), old_logprobs=old_logprobs, **(loss or {})).run(rank_plan)
    return gradients(policy), figures


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("sort_by_length", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_every_way_to_deal_the_samples_gives_the_papers_gradient(
    policy, samples, wanted, micro_batch_size: int, sort_by_length: bool, skip: bool
) -> None:
    plan = {"micro_batch_size": micro_batch_size, "sort_by_length": sort_by_length, "skip_zero_advantage": skip}
    got, _ = planned_gradients(policy, samples, **plan)
    assert relative_error(got, wanted) < TOLERANCE


def test_so_does_a_limit_on_tokens(policy, samples, wanted) -> None:
    got, _ = planned_gradients(policy, samples, micro_batch_size=8, max_tokens=40)
    assert relative_error(got, wanted) < TOLERANCE


@pytest.mark.parametrize("old_logprobs", ["current", "recompute"])
@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_so_does_the_chunked_projection(gpt_oss_folder, samples, wanted, old_logprobs: str, rows: int) -> None:
    chunked = random_adapter(gpt_oss_folder, rank=4).train()
    assert install_log_prob_head(chunked, rows)
    got, _ = planned_gradients(chunked, samples, old_logprobs=old_logprobs)
    assert relative_error(got, wanted) < TOLERANCE


def test_so_do_two_processes(gpt_oss_folder, samples, wanted, tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shutil.copytree(gpt_oss_folder, tmp_path, dirs_exist_ok=True)
    torch.multiprocessing.spawn(run_on_rank, args=(2, str(tmp_path), port), nprocs=2)
    got = torch.load(tmp_path / "gradients.pt")
    assert relative_error(got, wanted) < TOLERANCE


def test_the_token_mean_of_single_samples_is_another_gradient(policy, samples, wanted) -> None:
    # Upstream's loss at micro-batch 1: every response weighs the same, however long. Direction, so scale does not matter.
    policy.zero_grad()
    for sample, advantage in zip(samples, ADVANTAGES, strict=True):
        position = torch.arange(sample.sequences.shape[1]).unsqueeze(0)
        log_probs, _ = response_log_probs(policy, sample.sequences, sample.action_mask, sample.attention_mask, position, 1.0)
        (-advantage * log_probs.sum() / sample.action_mask.sum() / len(samples)).backward()
    got = gradients(policy)
    flat_got, flat_wanted = (torch.cat([g[k].flatten() for k in wanted]) for g in (got, wanted))
    assert torch.cosine_similarity(flat_got, flat_wanted, dim=0) < 0.99


def test_a_longer_response_weighs_more(policy) -> None:
    # The length bias in one line: the gradient of a sample is its tokens' sum, not their mean.
    options = LossOptions(samples=2, max_response=10, eps_low=0.2, eps_high=0.2)
    log_probs = torch.zeros(2, 8, requires_grad=True)
    mask = torch.tensor([[1] * 8, [1] * 2 + [0] * 6])
    parts = constant_loss(log_probs, log_probs.detach(), log_probs.detach(), torch.tensor([1.0, 1.0]), mask, options)
    parts.loss.backward()
    assert log_probs.grad.sum(dim=1).tolist() == pytest.approx([-8 / 20, -2 / 20])


def test_a_step_without_variance_is_taken_with_a_gradient_of_zero(policy, samples) -> None:
    steps = []
    policy.zero_grad()
    (plan,) = make_plans(samples, torch.zeros(len(samples)), train_batch_size=8)
    figures = training(policy, 8, optimizer_step=lambda: steps.append(1)).run(plan)
    assert len(steps) == 2
    assert all(grad.abs().max() == 0 for grad in gradients(policy).values())
    assert figures["optimizer/steps"] == 2
    assert figures["optimizer/gradient_norm"] == 0
    assert figures["parity/kl"] > 0  # measured on probes, by a sampler that is elsewhere


def test_figures_say_what_was_trained(policy, samples) -> None:
    _, figures = planned_gradients(policy, samples, loss={"correction": "tis", "weight_high": 2.0})
    # The made-up sampler gave every token -5 nats; the random model is elsewhere.
    assert figures["parity/abs_diff_mean"] > 0.1
    assert 0 < figures["mismatch/ess"] <= 1
    assert figures["ratio/log_ratio_max"] == 0  # exactly on-policy
    assert figures["policy/entropy"] > 0
    assert figures["optimizer/learning_rate"] == 0.5


def test_the_learning_rate_is_the_one_that_each_step_used(policy, samples) -> None:
    (plan,) = make_plans(samples, ADVANTAGES, train_batch_size=8)
    run = training(policy, 8)

    def optimizer_step() -> None:
        run.engine.rate /= 2  # a scheduler moves on within the engine's step, to what the next step will use

    run.optimizer_step = lambda: optimizer_step() if run.engine.boundary else None
    assert len(plan.steps) == 2
    assert run.run(plan)["optimizer/learning_rate"] == (0.5 + 0.25) / 2


def test_a_sampler_that_is_another_model_stops_the_step_before_the_optimizer(policy, samples) -> None:
    for old_logprobs in ("current", "recompute"):
        steps = []
        (plan,) = make_plans(samples, ADVANTAGES, train_batch_size=8)
        step = lambda steps=steps: steps.append(1)  # noqa: E731
        run = training(policy, 8, old_logprobs=old_logprobs, limits=ParityLimits(0.01, 0.0), optimizer_step=step)
        with pytest.raises(GateError, match=r"gate parity\] before the optimizer step"):
            run.run(plan)
        # Micro-batches before the boundary are counted by the engine, the boundary itself is not reached.
        assert len(steps) <= len(plan.steps[0]) - 1


@pytest.mark.parametrize("old_logprobs", ["current", "recompute", "rollout"])
def test_an_engine_whose_groups_are_all_dropped_is_measured_all_the_same(policy, samples, old_logprobs: str) -> None:
    # Garbage earns no reward, so exactly its groups have no variance and are left out.
    garbage = [types.SimpleNamespace(**vars(s)) for s in samples]
    for sample in garbage[:GROUP]:
        sample.rollout_log_probs = -500.0 * sample.action_mask
    for rewards in (REWARDS, torch.zeros(len(samples))):
        (plan,) = make_plans(garbage, group_advantages(rewards, GROUP))
        limits = ParityLimits(20.0, 0.0)  # the others' made-up logprobs are a few nats off
        run = training(policy, len(samples), old_logprobs=old_logprobs, limits=limits, correction="tis", weight_high=2.0)
        with pytest.raises(GateError, match="gate parity"):
            run.run(plan)


def test_a_correction_that_takes_every_token_away_stops_the_run(policy, samples) -> None:
    steps = []
    policy.zero_grad()
    (plan,) = make_plans(samples, ADVANTAGES)
    masking = training(policy, len(samples), optimizer_step=lambda: steps.append(1), correction="tis", weight_high=0.0)
    with pytest.raises(GateError, match=r"gate gradient\] samples have an advantage and the gradient is exactly 0"):
        masking.run(plan)
    assert len(steps) == len(plan.steps[0]) - 1  # counted micro-batches; the boundary is not reached


def test_advantages_are_rewards_minus_the_group_mean_and_exactly_zero_without_variance() -> None:
    assert group_advantages(torch.tensor([1.0, 0, 0, 0]), 4).tolist() == [0.75, -0.25, -0.25, -0.25]
    # 0.1 x 3 / 3 is not 0.1 in float32; a rounding error of the mean must not become a gradient.
    assert group_advantages(torch.full((3,), 0.1), 3).tolist() == [0.0, 0.0, 0.0]


def test_the_base_inside_the_policy_is_the_base(gpt_oss_folder, policy, samples) -> None:
    from transformers import GptOssForCausalLM

    base = GptOssForCausalLM.from_pretrained(gpt_oss_folder, dtype=torch.float32, attn_implementation="eager").train()
    sample = max(samples, key=lambda s: s.sequences.shape[1])
    arguments = (
        sample.sequences,
        sample.action_mask,
        sample.attention_mask,
        torch.arange(sample.sequences.shape[1])[None],
        1.0,
    )
    with torch.no_grad():
        with adapter_disabled(policy):
            inside = response_log_probs(policy, *arguments)[0]
        apart, with_adapter = response_log_probs(base, *arguments)[0], response_log_probs(policy, *arguments)[0]
    assert (inside - apart).abs().max() < 1e-6
    assert (with_adapter - apart).abs().max() > 0.01
    with pytest.raises(GateError, match="none"), adapter_disabled(base):
        pass


def test_the_kl_term_pulls_towards_the_base(policy, samples) -> None:
    # No advantage, so all of the gradient is the KL's; a step against it must lower it.
    loss = {"kl_coef": 0.1}
    got, before = planned_gradients(policy, samples, advantages=torch.zeros(len(samples)), loss=loss, skip_zero_advantage=False)
    assert before["policy/kl_to_base"] > 0
    saved = {name: p.detach().clone() for name, p in policy.named_parameters() if name in got}
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name in got:
                parameter -= 0.1 * got[name] / got[name].norm()
    _, after = planned_gradients(policy, samples, advantages=torch.zeros(len(samples)), loss=loss, skip_zero_advantage=False)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name in saved:
                parameter.copy_(saved[name])
    assert after["policy/kl_to_base"] < before["policy/kl_to_base"]


def options(correction: str) -> LossOptions:
    low, high = DEFAULT_BOUNDS[correction]
    return LossOptions(1, 1, 0.2, 0.2, correction=correction, weight_low=low, weight_high=high)


@pytest.mark.parametrize(
    ("correction", "weights", "truncated", "masked"),
    [
        ("none", [1, 1, 1, 1], 0, 0),
        # Truncated from above alone: a small weight stays small.
        ("tis", [0.1, 1, 2, 2], 1, 0),
        ("icepop", [0, 1, 2, 0], 0, 2),
        ("seq_mask", [0, 0, 0, 0], 0, 4),
    ],
)
def test_corrections_do_what_their_papers_say(correction: str, weights: list, truncated: int, masked: int) -> None:
    log_ratio = torch.tensor([[0.1, 1.0, 2.0, 8.0, 99.0]]).log()
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    got = importance_weights(log_ratio, mask, options(correction))
    assert got.weights[0, :4].tolist() == pytest.approx(weights)
    assert (got.truncated, got.masked) == (truncated, masked)


def test_a_sequence_is_masked_by_its_geometric_mean() -> None:
    # Token ratios of 2 and 1/2 cancel: kept, with truncated weights; the other drifts by 5 % a token: out.
    log_ratio = torch.tensor([[2.0, 0.5], [1.05, 1.05]]).log()
    got = importance_weights(log_ratio, torch.ones(2, 2), options("seq_mask"))
    assert got.weights.tolist() == [pytest.approx([2.0, 0.5]), [0.0, 0.0]]


def test_an_unknown_correction_is_refused() -> None:
    with pytest.raises(ValueError, match="'mis' is not one of none, tis, icepop, seq_mask"):
        importance_weights(torch.zeros(1, 1), torch.ones(1, 1), LossOptions(1, 1, 0.2, 0.2, correction="mis"))
    assert set(DEFAULT_BOUNDS) == set(CORRECTIONS)


def test_the_sampler_as_old_policy_is_corrected_for() -> None:
    # One token, sampler 0.7 nats below the trainer: the weight exp(0.7) = 2.01 is cut to 2.
    log_probs = torch.tensor([[-1.0]], requires_grad=True)
    parts = constant_loss(
        log_probs, log_probs.detach(), torch.tensor([[-1.7]]), torch.tensor([1.0]), torch.ones(1, 1), options("tis")
    )
    parts.loss.backward()
    assert log_probs.grad.item() == pytest.approx(-2.0)


def test_the_ratio_is_clipped_only_where_it_runs_away() -> None:
    log_probs = torch.tensor([[0.5], [-0.5], [0.5], [-0.5]], requires_grad=True)
    old = torch.zeros(4, 1)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    parts = constant_loss(log_probs, old, old, advantages, torch.ones(4, 1), LossOptions(4, MAX_RESPONSE, 0.2, 0.2))
    parts.loss.backward()
    assert (log_probs.grad[:, 0] != 0).tolist() == [False, True, True, False]
    assert (parts.ratios.clipped_high, parts.ratios.clipped_low) == (1, 1)


def test_so_does_a_real_zero_3_engine(gpt_oss_folder, wanted, tmp_path) -> None:
    # With a configured accumulation that is not the plan's: nothing may be divided by it, and one step is taken.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "tests/deepspeed_gradients.py", gpt_oss_folder, tmp_path / "out.pt", port]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    out = torch.load(tmp_path / "out.pt")
    got = {name: out["gradients"][name].reshape(grad.shape) for name, grad in wanted.items()}
    assert relative_error(got, wanted) < TOLERANCE
    assert (out["steps"], out["engine_steps"]) == (1, 1)
