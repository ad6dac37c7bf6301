"""The learning-rate schedule, built in one place for training and for the preflight check."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import get_scheduler

from gptoss_rl.flags import REFILL_FACTOR

# Schedulers of transformers 4.57.6 that take min_lr; the others raise TypeError when given it.
TAKES_MIN_LR = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
# Schedulers that do not depend on how many steps there will be.
OPEN_ENDED = ("constant", "constant_with_warmup")
MIN_LR_SHARE = 0.1  # of the peak, as upstream


@dataclass(frozen=True)
class RunLength:
    """How long a run is, in the two units that get mixed up."""

    global_steps: int  # rollout batches; one policy sync each
    optimizer_steps: int  # what the scheduler counts
    dropped_prompts: int  # at the end of each episode: a partial batch is never trained on


def run_length(args: argparse.Namespace, num_prompts: int) -> RunLength:
    """Steps that a run over `num_prompts` prompts really takes; under `--zero_variance refill` those that are certain.

    Upstream (`prepare_datasets`) also counts the partial last batch, which its sampler then drops, so its
    schedule would end above its minimum.
    """
    per_episode, dropped = divmod(num_prompts, args.rollout_batch_size)
    if args.zero_variance == "refill":
        per_step = max(args.refill_max_prompts or REFILL_FACTOR * args.rollout_batch_size, args.rollout_batch_size)
        # While a batch of prompts is left there is another step.
        per_episode, dropped = math.ceil((num_prompts - args.rollout_batch_size + 1) / per_step) if per_episode else 0, 0
    global_steps = per_episode * args.num_episodes
    updates = args.rollout_batch_size * args.n_samples_per_prompt // args.train_batch_size * args.max_epochs
    return RunLength(global_steps, global_steps * updates, dropped)


def warmup_steps(args: argparse.Namespace, optimizer_steps: int) -> int:
    """Optimizer steps of linear warm-up."""
    return math.ceil(optimizer_steps * args.lr_warmup_ratio)


def build_scheduler(args: argparse.Namespace, optimizer: Optimizer, optimizer_steps: int):
    """The scheduler of the actor. Counts optimizer steps, not global steps; of N steps of warm-up the first is at 1/N."""
    specific = {"min_lr": args.actor_learning_rate * MIN_LR_SHARE} if args.lr_scheduler in TAKES_MIN_LR else None
    warmup = warmup_steps(args, optimizer_steps)
    scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=optimizer_steps,
        scheduler_specific_kwargs=specific,
    )
    if not warmup or not isinstance(scheduler, LambdaLR):
        return scheduler
    return LambdaLR(optimizer, [from_the_first(factor, warmup) for factor in scheduler.lr_lambdas])


def from_the_first(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    """A schedule whose warm-up counts from 1/N.

    Most of transformers' count from 0: a rollout batch, and Adam's moments, would be spent on an update of exactly nothing.
    """
    return lambda step: (step + 1) / warmup if step < warmup else factor(step)
