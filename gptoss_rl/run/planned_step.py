"""The controller's side of a planned global step: advantages, the plan, and the actors' figures."""

from typing import Any

import ray

from gptoss_rl.run.rollouts import sample_rewards
from gptoss_rl.training.step_metrics import advantage_statistics
from gptoss_rl.training.train_plan import PlanOptions, group_advantages, plan_global_step


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
    options = PlanOptions.of(args, len(actors), trainer.tokenizer.pad_token_id)
    plans, size = plan_global_step(samples, advantages, options, args.seed + step)
    figures = ray.get([actor.train_plan.remote(plan) for actor, plan in zip(actors, plans, strict=True)])[0]
    return {
        **figures,
        **advantage_statistics(advantages),
        "batch/skipped": 1 - size.kept_samples / len(samples),
        "batch/tokens": float(size.padded),
        "batch/padding": 1 - size.real / size.padded,
    }
