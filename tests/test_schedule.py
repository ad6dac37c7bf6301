"""The schedule counts optimizer steps, and only those that are taken."""

import argparse

import pytest
import torch
from transformers import SchedulerType

from gptoss_rl.run.preflight_lr import learning_rates
from gptoss_rl.training.schedule import build_scheduler, run_length

# These two need something that no flag of OpenRLHF gives them; they fail before and after the patch.
NOT_FOR_A_FIXED_LENGTH = {"reduce_lr_on_plateau", "warmup_stable_decay"}


def arguments(**changes) -> argparse.Namespace:
    base = {
        "rollout_batch_size": 16,
        "n_samples_per_prompt": 8,
        "train_batch_size": 16,
        "num_episodes": 1,
        "max_epochs": 1,
        "lr_scheduler": "cosine_with_min_lr",
        "lr_warmup_ratio": 0.03,
        "actor_learning_rate": 5e-7,
        "zero_variance": "keep",
        "refill_max_prompts": None,
    }
    return argparse.Namespace(**{**base, **changes})


@pytest.mark.parametrize("name", sorted({s.value for s in SchedulerType} - NOT_FOR_A_FIXED_LENGTH))
def test_every_scheduler_of_transformers_builds(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(arguments(lr_scheduler=name), optimizer, 100)
    assert scheduler.get_last_lr()[0] <= 1.0


def test_the_a30_run_takes_1600_optimizer_steps() -> None:
    length = run_length(arguments(), 3200)
    assert (length.global_steps, length.optimizer_steps, length.dropped_prompts) == (200, 1600, 0)


def test_a_partial_batch_is_not_counted() -> None:
    length = run_length(arguments(), 3215)
    assert (length.global_steps, length.dropped_prompts) == (200, 15)


def test_episodes_and_epochs_multiply_what_they_should() -> None:
    length = run_length(arguments(num_episodes=2, max_epochs=3), 3200)
    assert (length.global_steps, length.optimizer_steps) == (400, 400 * 8 * 3)


@pytest.mark.parametrize(
    ("prompts", "bound", "certain"),
    [(320, None, 5), (320, 16, 20), (320, 8, 20), (80, 64, 2), (79, 64, 1), (16, 64, 1), (15, 64, 0)],
)
def test_of_a_refilled_run_only_the_steps_that_are_certain_are_counted(prompts: int, bound: int | None, certain: int) -> None:
    # 64 prompts, or the bound, may go into each step of 16; the last one needs 16.
    length = run_length(arguments(zero_variance="refill", refill_max_prompts=bound, num_episodes=2), prompts)
    assert (length.global_steps, length.optimizer_steps) == (2 * certain, 2 * certain * 8)


def test_the_cosine_reaches_its_peak_and_its_floor() -> None:
    rates = learning_rates(arguments(), 1600)
    assert max(rates) == pytest.approx(5e-7)
    assert rates[-1] == pytest.approx(5e-8, rel=0.01)


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("name", sorted({s.value for s in SchedulerType} - NOT_FOR_A_FIXED_LENGTH))
def test_no_optimizer_step_is_spent_at_rate_0(name: str, warmup_ratio: float) -> None:
    # Most of transformers' warm-ups start at 0: a rollout batch is drawn and trained on, and the weights stay as they were.
    rates = learning_rates(arguments(lr_scheduler=name, lr_warmup_ratio=warmup_ratio), 100)
    assert min(rates) > 0


def test_warm_up_counts_from_the_first_step() -> None:
    rates = learning_rates(arguments(lr_warmup_ratio=0.04, actor_learning_rate=1.0), 100)
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    args, weight = arguments(lr_warmup_ratio=0.1), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=args.actor_learning_rate)
    first, rates = build_scheduler(args, optimizer, 100), learning_rates(args, 100)
    for _ in range(4):
        optimizer.step()
        first.step()
    optimizer = torch.optim.SGD([weight], lr=args.actor_learning_rate)
    second = build_scheduler(args, optimizer, 100)
    second.load_state_dict(first.state_dict())
    optimizer.step()
    second.step()
    assert second.get_last_lr() == [rates[5]]
