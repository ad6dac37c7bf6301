"""Rollout samples as the controller sees them: what they say about the step, and whether they may be used."""

import math
from typing import Any

import torch

from gptoss_rl.errors import GateError
from gptoss_rl.prompts import problem_id, problem_of
from gptoss_rl.records import Record, make_record


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


def check_rollout_log_probs(samples: list[Any]) -> None:
    """Refuse samples whose logprobs of the sampler are missing or not finite, also those that will not be trained on.

    Raises:
        GateError: naming how many, and what the first lacks.
    """
    faults = [fault for sample in samples if (fault := log_prob_fault(sample))]
    if faults:
        raise GateError("parity", f"{len(faults)} of {len(samples)} samples are unusable: {faults[0]}. An engine is broken.")


def log_prob_fault(sample: Any) -> str | None:
    """What is wrong with the (1, S - 1) logprobs of the sampler on the sample's response tokens; None when nothing is."""
    if sample.rollout_log_probs is None or sample.rollout_log_probs.shape != sample.action_mask.shape:
        return "the sampler did not give one logprob a token"
    response = sample.rollout_log_probs[sample.action_mask.bool()]
    if not response.numel():
        return "the response is empty"
    return None if torch.isfinite(response).all() else "a logprob of the sampler is not finite"


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
    groups = len(rewards_P_G)
    right = rewards_P_G.eq(rewards_P_G.max().clamp(min=1.0))

    def share(key: str) -> float:
        return torch.tensor([float(s.info[key]) for s in samples]).mean().item()

    return {
        "reward/mean": rewards_P_G.mean().item(),
        "reward/std": rewards_P_G.std(unbiased=False).item(),
        # Samples of one prompt are alike, so the prompts are the clusters.
        "reward/se": (rewards_P_G.mean(dim=1).std() / groups**0.5).item() if groups > 1 else math.inf,
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


def sample_record(sample: Any, tokenizer: Any, step: int) -> Record:
    """One sample as a line of samples.jsonl or eval.jsonl."""
    first = int(sample.action_mask[0].nonzero()[0]) + 1
    length = int(sample.info["response_length"])
    problem = problem_of(sample.prompts[0])
    record = make_record(
        problem_id(sample.prompts[0] if problem is None else problem),
        sample.prompts[0],
        tokenizer.decode(sample.sequences[0, first : first + length], skip_special_tokens=False),
        sample.labels[0],
        tokens=length,
        finish_reason="length" if sample.info["truncated"] else "stop",
        reward=float(sample.rewards[0]),
    )
    return {"step": step, **record, "policy_version": int(sample.info["policy_version"])}
