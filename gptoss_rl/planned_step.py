"""The controller's side of a planned global step: advantages, the plan, and the actors' figures."""

import argparse
from typing import Any

import ray

from gptoss_rl.policy_loss import DEFAULT_BOUNDS, LossOptions
from gptoss_rl.rollouts import sample_rewards
from gptoss_rl.step_metrics import advantage_statistics
from gptoss_rl.train_plan import group_advantages, plan_global_step


def is_on_policy(args: argparse.Namespace) -> bool:
    """Whether a rollout batch is one optimizer step, so that the old policy is the current one."""
    return args.rollout_batch_size * args.n_samples_per_prompt == args.train_batch_size


def loss_options(args: argparse.Namespace) -> LossOptions:
    """The loss that the launch flags ask for."""
    low, high = DEFAULT_BOUNDS[args.is_correction]
    return LossOptions(
        samples=args.train_batch_size,
        max_response=args.generate_max_len,
        eps_low=args.eps_clip_low_high[0],
        eps_high=args.eps_clip_low_high[1],
        log_ratio_clip=args.log_ratio_clip,
        correction=args.is_correction,
        weight_low=low if args.is_weight_low is None else args.is_weight_low,
        weight_high=high if args.is_weight_high is None else args.is_weight_high,
        kl_coef=args.init_kl_coef,
    )


def train_planned(trainer: Any, samples: list[Any], step: int) -> dict[str, float]:
    """Train one rollout batch on the policy actors.

    Args:
        trainer: OpenRLHF's `PPOTrainer`.
        samples: experiences of one sample each, the samples of a prompt next to each other.
        step: global step, which with the run's seed decides how samples are dealt.

    Returns:
        Figures under their registered names.
    """
    args = trainer.args
    actors = trainer.actor_model_group._actor_handlers
    advantages = group_advantages(sample_rewards(samples), args.n_samples_per_prompt)
    plans, size = plan_global_step(
        samples,
        advantages,
        train_batch_size=args.train_batch_size,
        micro_batch_size=args.micro_train_batch_size,
        max_tokens=args.micro_batch_max_tokens,
        ranks=len(actors),
        skip_zero_advantage=args.zero_variance != "keep",
        sort_by_length=args.micro_batch_order == "length",
        pad_token_id=trainer.tokenizer.pad_token_id,
        seed=args.seed + step,
    )
    figures = ray.get([actor.train_plan.remote(plan) for actor, plan in zip(actors, plans, strict=True)])[0]
    return {
        **figures,
        **advantage_statistics(advantages),
        "batch/skipped": 1 - size.kept_samples / len(samples),
        "batch/tokens": float(size.padded),
        "batch/padding": 1 - size.real / size.padded,
    }
