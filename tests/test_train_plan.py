"""How samples are dealt: nothing lost, nothing twice, ranks in step, little padding."""

import types
from dataclasses import replace

import pytest
import torch
from planned import make_samples

from gptoss_rl.errors import GateError
from gptoss_rl.flags import ParityLimits
from gptoss_rl.training.mismatch import MismatchGuard, MismatchMeter
from gptoss_rl.training.train_plan import PlanOptions, deal, placeholder_of, plan_global_step

OPTIONS = PlanOptions(
    group_size=4, train_batch_size=16, micro_batch_size=2, max_tokens=None, ranks=4, skip_zero_advantage=True,
    sort_by_length=True, pad_token_id=0,
)  # fmt: skip


def plan(samples, advantages, seed: int = 3, **changes):
    return plan_global_step(samples, advantages, replace(OPTIONS, **changes), seed)


def rows(plans) -> list[tuple[int, ...]]:
    """Tokens of every sample in the plans, placeholders left out."""
    return sorted(
        tuple(row[mask.bool()].tolist())
        for rank in plans
        for batch in rank.micro_batches()
        if not batch.placeholder
        for row, mask in zip(batch.sequences, batch.attention_mask, strict=True)
    )


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("sort_by_length", [True, False])
def test_every_sample_with_an_advantage_is_trained_once(ranks: int, sort_by_length: bool) -> None:
    samples = make_samples(64, 1000)
    advantages = torch.tensor([0.0, 0.5, -0.5, 0.25] * 16)
    plans, size = plan(samples, advantages, ranks=ranks, sort_by_length=sort_by_length)
    wanted = sorted(tuple(s.sequences[0].tolist()) for s, a in zip(samples, advantages, strict=True) if a != 0)
    assert rows(plans) == wanted
    assert size.kept_samples == 48
    assert size.real == sum(len(row) for row in wanted)
    assert len({tuple(len(step) for step in rank.steps) for rank in plans}) == 1, "ranks are out of step"
    assert all(len(rank.steps) == 4 for rank in plans)
    assert all(len(b.sequences) <= 2 for rank in plans for b in rank.micro_batches())


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_group_that_is_dropped_leaves_the_beginning_of_its_longest_sample_as_a_probe(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptoss_rl.training.train_plan.PROBE_TOKENS", 5)
    samples = make_samples(64, 1000)
    advantages = torch.tensor([0.5, -0.5, 0.5, -0.5] * 8 + [0.0] * 32)
    plans, size = plan(samples, advantages, ranks=ranks)
    groups = [samples[i : i + 4] for i in range(32, 64, 4)]
    longest = [max(group, key=lambda s: s.sequences.shape[1]) for group in groups]
    probes = [s.sequences[0, : int(s.action_mask[0].argmax()) + 6].tolist() for s in longest]
    assert rows(plans) == sorted([tuple(s.sequences[0].tolist()) for s in samples[:32]] + [tuple(p) for p in probes])
    assert size.kept_samples == 32


def test_an_optimizer_step_without_advantages_is_measured_on_one_sample() -> None:
    plans, size = plan(make_samples(64, 1000), torch.zeros(64), ranks=2)
    assert size.kept_samples == 0
    for number in range(4):
        assert any(not batch.placeholder for rank in plans for batch in rank.steps[number])
        assert not any(rank.learns[number] for rank in plans)


def test_sorting_saves_padding() -> None:
    samples, advantages = make_samples(64, 1000), torch.ones(64)
    padded = {order: plan(samples, advantages, sort_by_length=order)[1].padded for order in (True, False)}
    assert padded[True] < padded[False]


def test_a_rank_without_samples_gets_the_cheapest_work_there_is() -> None:
    samples = make_samples(16, 1000)
    advantages = torch.zeros(16)
    advantages[5] = 1.0
    plans, _ = plan(samples, advantages, group_size=16)
    batches = [batch for rank in plans for batch in rank.micro_batches()]
    assert len(batches) == 4
    assert sum(not b.placeholder for b in batches) == 1
    for batch in batches:
        if batch.placeholder:
            assert batch.advantages.tolist() == [0.0]
            assert batch.action_mask.sum() == 1
            assert batch.sequences.shape[1] == batch.action_mask.shape[1] + 1


def test_a_placeholder_is_cut_after_the_first_response_token() -> None:
    sample = types.SimpleNamespace(
        sequences=torch.tensor([[5, 6, 7, 8, 9]]),
        attention_mask=torch.ones(1, 5, dtype=torch.long),
        action_mask=torch.tensor([[0, 1, 1, 1]]),
        rollout_log_probs=torch.tensor([[0.0, -1.0, -2.0, -3.0]]),
    )
    batch = placeholder_of(sample, 0)
    assert batch.sequences.tolist() == [[5, 6, 7]]
    assert batch.action_mask.tolist() == [[0, 1]]


def test_the_deal_is_even() -> None:
    for count in range(40):
        rounds = deal([7] * count, ranks=3, micro_batch_size=4, max_tokens=None)
        assert [i for pieces in rounds for piece in pieces for i in piece] == list(range(count))
        assert len(rounds) == max(1, -(-count // 12))
        for pieces in rounds:
            sizes = [len(piece) for piece in pieces]
            assert max(sizes) <= 4
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("descending", [True, False])
def test_long_samples_share_a_micro_batch_with_fewer(descending: bool) -> None:
    lengths = [90, 60, 50, 50, 30, 30, 20, 20, 10, 10, 10, 10]
    if not descending:
        lengths = lengths[::-1]
    rounds = deal(lengths, ranks=2, micro_batch_size=4, max_tokens=100)
    pieces = [piece for pair in rounds for piece in pair]
    assert [i for piece in pieces for i in piece] == list(range(12))
    for piece in pieces:
        assert len(piece) == 1 or len(piece) * max(lengths[i] for i in piece) <= 100
    if descending:
        # 90 | 60, then 50 50 | 30 30, then 20 20 10 | 10 10 10 : five 20s would fit, four are allowed.
        assert [len(piece) for piece in pieces] == [1, 1, 2, 2, 3, 3]


def test_a_sample_above_the_limit_is_alone_and_not_lost() -> None:
    rounds = deal([500, 400, 3], ranks=1, micro_batch_size=4, max_tokens=100)
    assert [[len(piece) for piece in pieces] for pieces in rounds] == [[1], [1], [1]]


def test_another_step_deals_differently_and_the_same_step_the_same() -> None:
    samples, advantages = make_samples(64, 1000), torch.ones(64)
    first, again, other = (plan(samples, advantages, seed=seed)[0][0].steps[0][0].sequences for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_samples_that_would_be_left_over_are_an_error() -> None:
    with pytest.raises(ValueError, match="60 samples do not divide into optimizer steps of 16"):
        plan(make_samples(60, 1000), torch.ones(60))


def test_the_guard_waits_for_several_steps_on_end() -> None:
    guard = MismatchGuard(ParityLimits(max_mismatch_kl=0.01, mismatch_patience=3))
    seen = [guard.must_stop(kl) for kl in (0.02, 0.02, 0.005, 0.02, float("nan"), 0.02)]
    assert seen == [False, False, False, False, False, True]
    assert "[gate mismatch] step 9: KL(sampler || trainer) = 0.02" in str(guard.error(9, 0.02))
    off = MismatchGuard(ParityLimits(max_mismatch_kl=0.0, mismatch_patience=1))
    assert not any(off.must_stop(kl) for kl in (5.0, float("nan")))


def test_figures_of_the_mismatch_are_those_of_the_weights() -> None:
    meter = MismatchMeter()
    meter.add(torch.tensor([1.0, 1.0]).log(), torch.tensor([3, 4]))
    meter.add(torch.tensor([3.0, 1.0]).log(), torch.tensor([5, 6]))
    meter.add_corrected(truncated=1, masked=0, tokens=4)
    figures = meter.reduce()
    assert figures["mismatch/ess"] == pytest.approx(36 / (4 * 12))
    assert figures["mismatch/weight_max"] == pytest.approx(3.0)
    assert figures["mismatch/truncated"] == 0.25
    with pytest.raises(GateError, match="before the step: not one token of trainer and sampler was compared"):
        meter.check(ParityLimits(), "before the step")  # starts the next step empty


@pytest.mark.parametrize("seed", range(20))
def test_nearly_equal_models_give_figures_within_their_bounds(seed: int) -> None:
    # In float32, rounding puts the share above 1 and the k3 below 0.
    meter = MismatchMeter()
    differences = torch.randn(997, generator=torch.Generator().manual_seed(seed)) * 1e-5
    meter.add(differences, torch.arange(997))
    figures = meter.reduce()
    assert 1 - 1e-9 < figures["mismatch/ess"] <= 1
    assert figures["parity/kl"] == pytest.approx(differences.double().square().mean().item() / 2, rel=1e-3)


def test_one_huge_weight_is_one_effective_sample() -> None:
    meter = MismatchMeter()
    meter.add(torch.tensor([0.0, 0.0, 0.0, 100.0]), torch.arange(4))  # exp(100) is beyond float32
    assert meter.reduce()["mismatch/ess"] == pytest.approx(0.25)
