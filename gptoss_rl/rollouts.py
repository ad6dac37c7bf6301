"""Rollout samples as the controller sees them: what they say about the step, and whether they may be used."""

import math
from typing import Any

import torch

from gptoss_rl.errors import GateError
from gptoss_rl.prompts import problem_id, problem_of
from gptoss_rl.step_metrics import quantile

PARITY_ERRORS = 3.0  # standard errors by which a parity figure must be above its threshold


def check_policy_version(samples: list[Any], expected: int) -> None:
    """Refuse samples that another policy version produced.

    Raises:
        GateError: naming the version and how many samples carry it.
    """
    seen = [int(sample.info["policy_version"].item()) for sample in samples]
    wrong = [version for version in seen if version != expected]
    if wrong:
        raise GateError(
            "sync",
            f"{len(wrong)} of {len(seen)} samples come from policy version {sorted(set(wrong))}, expected {expected}: "
            "an engine missed a sync or answered from before it",
        )


def sample_rewards(samples: list[Any]) -> torch.Tensor:
    """(samples,) rewards of experiences of one sample each."""
    return torch.cat([s.rewards for s in samples])


def rollout_statistics(samples: list[Any], group_size: int) -> dict[str, float]:
    """Reward and length distribution of one step.

    Args:
        samples: one Experience a sample (batch of 1), the samples of a prompt next to each other.
        group_size: samples a prompt.
    """
    rewards_P_G = sample_rewards(samples).reshape(-1, group_size)
    lengths = torch.tensor([float(s.info["response_length"]) for s in samples])
    right = rewards_P_G.eq(rewards_P_G.max().clamp(min=1.0))

    def share(key: str) -> float:
        return torch.tensor([float(s.info[key]) for s in samples]).mean().item()

    return {
        "reward/mean": rewards_P_G.mean().item(),
        "reward/std": rewards_P_G.std(unbiased=False).item(),
        "reward/all_right": right.all(dim=1).float().mean().item(),
        "reward/all_wrong": rewards_P_G.le(0).all(dim=1).float().mean().item(),
        "reward/answer_found": share("answer_found"),
        "reward/final_channel": share("final_channel"),
        "rollout/samples": float(len(samples)),
        "rollout/response_tokens_mean": lengths.mean().item(),
        "rollout/response_tokens_max": lengths.max().item(),
        "rollout/total_tokens": sum(float(s.info["total_length"]) for s in samples),
        "rollout/truncated": share("truncated"),
        "rollout/policy_version": float(samples[0].info["policy_version"]),
    }


def parity_statistics(experiences: list[Any]) -> dict[str, float]:
    """How far trainer and sampler are apart on the tokens that the sampler drew.

    KL is the k3 estimate of http://joschu.net/blog/kl-approx.html with samples from the sampler:
    E[exp(d) - 1 - d], d = trainer minus sampler logprob; never negative.
    """
    differences = torch.cat([(e.action_log_probs - e.rollout_log_probs)[e.action_mask.bool()].float() for e in experiences])
    return difference_statistics(differences)


def difference_statistics(differences: torch.Tensor) -> dict[str, float]:
    """Parity figures of a (tokens,) tensor of trainer minus sampler logprobs."""
    sizes, k3 = differences.abs(), differences.exp() - 1 - differences

    def standard_error(values: torch.Tensor) -> float:
        return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else float("inf")

    return {
        "parity/abs_diff_mean": sizes.mean().item(),
        "parity/abs_diff_se": standard_error(sizes),
        "parity/abs_diff_p99": quantile(sizes, 0.99),
        "parity/kl": k3.mean().item(),
        "parity/kl_se": standard_error(k3),
    }


def check_parity(statistics: dict[str, float], max_abs_diff: float, max_kl: float, when: str) -> None:
    """Stop when trainer and sampler are not the same model.

    A figure must be above its threshold by PARITY_ERRORS standard errors. The k3 estimate has a heavy tail: where only a
    group or two have variance, one token whose expert changes under rounding can carry a step's whole KL, and a healthy
    run was stopped by that once (rl_grpo_research.md, 2026-11-23). Another model moves many tokens.

    Raises:
        GateError: a figure is above its threshold (0 is off) or not a number.
    """
    for key, error, limit, flag in (
        ("parity/abs_diff_mean", "parity/abs_diff_se", max_abs_diff, "--parity_max_abs_diff"),
        ("parity/kl", "parity/kl_se", max_kl, "--parity_max_kl"),
    ):
        value, margin = statistics[key], PARITY_ERRORS * statistics[error]
        if limit > 0 and not (math.isfinite(value) and value - margin <= limit):
            raise GateError(
                "parity",
                f"{when}: trainer and sampler differ by {key} = {value:.4g} +- {statistics[error]:.2g}, allowed {limit:g} "
                f"({flag}). Likely "
                "causes: different checkpoints in --pretrain and --vllm_pretrain, an attention kernel without sinks, "
                "a sampler that ignores the adapter, or a temperature that one side does not apply.",
            )


def sample_record(sample: Any, tokenizer: Any, step: int) -> dict[str, Any]:
    """One sample as a line of samples.jsonl or eval.jsonl."""
    import reward_func_em

    first = int(sample.action_mask[0].nonzero()[0]) + 1
    tokens = sample.sequences[0, first : first + int(sample.info["response_length"])]
    response = tokenizer.decode(tokens, skip_special_tokens=False)
    problem = problem_of(sample.prompts[0])
    return {
        "step": step,
        "id": problem_id(sample.prompts[0] if problem is None else problem),
        "prompt": sample.prompts[0],
        "response": response,
        "label": sample.labels[0],
        "answer": reward_func_em.extract_answer(response),
        "reward": float(sample.rewards[0]),
        "correct": bool(sample.rewards[0] > 0),
        "tokens": int(sample.info["response_length"]),
        "finish_reason": "length" if bool(sample.info["truncated"]) else "stop",
        "policy_version": int(sample.info["policy_version"]),
    }
