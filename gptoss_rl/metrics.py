"""Every key of metrics.jsonl: name, unit, meaning. The one registry; an unregistered key is an error."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    unit: str
    meaning: str
    may_be_infinite: bool = False  # the error of a mean over one token or prompt; NaN is a fault in every metric


# What every line carries beside its metrics.
STAMPS: dict[str, Metric] = {
    "step": Metric("count", "global step that the line is about, from 1; a resumed run goes on after its checkpoint's"),
    "time": Metric("s", "Unix time at which the step was finished"),
}

METRICS: dict[str, Metric] = {
    "reward/mean": Metric("1", "mean reward of the step's samples"),
    "reward/std": Metric("1", "standard deviation of the reward over the step's samples"),
    "reward/se": Metric("1", "standard error of the mean reward, over prompts; inf for one prompt", may_be_infinite=True),
    "reward/all_right": Metric("share", "groups in which every sample is right: no gradient"),
    "reward/all_wrong": Metric("share", "groups in which every sample is wrong: no gradient"),
    "reward/answer_found": Metric("share", "samples in which the grader found an answer, right or wrong"),
    "reward/final_channel": Metric("share", "samples that reached the final channel"),
    "rollout/samples": Metric("count", "samples drawn, also those refill rejects: reward/ and rollout/ are of all"),
    "rollout/response_tokens_mean": Metric("tokens", "mean response length"),
    "rollout/response_tokens_max": Metric("tokens", "longest response"),
    "rollout/total_tokens": Metric("tokens", "prompt and response tokens of the step"),
    "rollout/truncated": Metric("share", "responses cut off at the length limit"),
    "rollout/policy_version": Metric("count", "policy version that produced the samples"),
    "parity/abs_diff_mean": Metric("nats", "mean |logprob difference| of trainer and sampler, response tokens"),
    "parity/abs_diff_p99": Metric("nats", "99th percentile of |logprob difference| of trainer and sampler, response tokens"),
    "parity/abs_diff_se": Metric("nats", "standard error of parity/abs_diff_mean; inf for one token", may_be_infinite=True),
    "parity/abs_diff_early": Metric(
        "nats", "mean |logprob difference| of the first quarter of tokens by position in the sequence"
    ),
    "parity/abs_diff_late": Metric(
        "nats", "mean |logprob difference| of the last quarter by position; a fault of RoPE grows with it"
    ),
    "parity/abs_diff_late_se": Metric(
        "nats", "standard error of parity/abs_diff_late; inf for one token", may_be_infinite=True
    ),
    "parity/kl": Metric("nats/token", "KL(sampler || trainer), k3 estimate, response tokens"),
    "parity/kl_se": Metric("nats/token", "standard error of parity/kl; inf for one token", may_be_infinite=True),
    "mismatch/ess": Metric("share", "effective sample size of the importance weights trainer / sampler, over tokens"),
    "mismatch/weight_p01": Metric("1", "1st percentile of the importance weights trainer / sampler"),
    "mismatch/weight_p99": Metric("1", "99th percentile of the importance weights trainer / sampler"),
    "mismatch/weight_max": Metric("1", "largest importance weight trainer / sampler"),
    "mismatch/truncated": Metric("share", "trained tokens whose importance weight --is_correction cut"),
    "mismatch/masked": Metric("share", "trained tokens whose importance weight --is_correction set to 0"),
    "batch/skipped": Metric("share", "samples left out because their group has no variance"),
    "batch/tokens": Metric("tokens", "tokens of one forward pass over the step, padding included, all ranks"),
    "batch/padding": Metric("share", "share of batch/tokens that is padding or placeholders"),
    "rollout/kept_groups": Metric("%", "prompts used of prompts drawn, under --zero_variance refill"),
    "loss/policy": Metric("1", "policy loss, mean over optimizer steps (constant) or micro-batches (token_mean)"),
    "loss/entropy": Metric("nats", "entropy term of the loss, when asked for"),
    "ratio/ppo_kl": Metric("nats/token", "mean of old minus new logprob, by token"),
    "ratio/clip_share": Metric("share", "tokens where PPO's clip is active, as upstream counts them"),
    "ratio/log_ratio_mean": Metric("nats", "mean log-ratio of new to old policy"),
    "ratio/log_ratio_max": Metric("nats", "largest |log-ratio| of new to old policy"),
    "ratio/log_ratio_p99": Metric("nats", "99th percentile of |log-ratio| of new to old policy"),
    "ratio/clipped_low": Metric("share", "tokens below the trust region with negative advantage"),
    "ratio/clipped_high": Metric("share", "tokens above the trust region with positive advantage"),
    "ratio/sampler_kl": Metric("nats/token", "upstream's vllm_kl, under importance-sampling correction only"),
    "policy/entropy": Metric("nats", "mean token entropy on trained response tokens"),
    "policy/kl_to_base": Metric("nats/token", "KL(policy || base), k3 estimate; 0 when --init_kl_coef is 0"),
    "advantage/mean": Metric("1", "mean advantage of the samples"),
    "advantage/std": Metric("1", "standard deviation of the advantages"),
    "advantage/max_abs": Metric("1", "largest |advantage| of the samples"),
    "optimizer/gradient_norm": Metric("1", "L2 norm of the gradient before clipping, mean over the step's optimizer steps"),
    "optimizer/gradient_norm_max": Metric("1", "largest gradient norm of the step's optimizer steps"),
    "optimizer/steps": Metric("count", "optimizer steps taken in this global step"),
    "optimizer/learning_rate": Metric("1", "learning rate that the optimizer steps used, mean over them"),
    "sync/seconds": Metric("s", "weight sync, from the gather to the last proof"),
    "sync/dead_zone_share": Metric("share", "merge mode: share of the update lost to bf16 rounding"),
    "time/generate": Metric("s", "rollout, rewards included"),
    "time/experience": Metric("s", "old and base logprobs"),
    "time/train": Metric("s", "forward, backward and optimizer steps"),
    "time/sync": Metric("s", "weight sync, as the controller waits for it"),
    "time/checkpoint": Metric("s", "writing a checkpoint, 0 when none is due"),
    "time/evaluate": Metric("s", "evaluation after the previous step, 0 when none was due"),
    "time/step": Metric("s", "whole global step without checkpoint and evaluation"),
}

PHASES = ("generate", "experience", "train", "sync")  # what time/step is the sum of

# Upstream's status keys under their names here. None: recorded under a better definition above.
UPSTREAM_NAMES: dict[str, str | None] = {
    "policy_loss": "loss/policy",
    "entropy_loss": "loss/entropy",
    "ppo_kl": "ratio/ppo_kl",
    "ppo_clip_ratio": "ratio/clip_share",
    "vllm_kl": "ratio/sampler_kl",
    "kl": "policy/kl_to_base",
    "dynamic_filtering_pass_rate": "rollout/kept_groups",
    "actor_lr": None,  # read after the step, it is the next one's
    "logprobs_diff": None,
    "reward": None,
    "score": None,
    "return": None,
    "response_length": None,
    "total_length": None,
    "response_clip_ratio": None,
    "truncated": None,
    "policy_version": None,
    "group_reward_std": None,
    "answer_found": None,
    "final_channel": None,
    "generated_samples": None,
}


def rename_upstream(status: dict) -> dict[str, float]:
    """Status of upstream's trainer under registered names.

    Raises:
        KeyError: a key that neither the registry nor upstream's list knows.
    """
    renamed = {}
    for key, value in status.items():
        name = key if key in METRICS else UPSTREAM_NAMES[key]
        if name is not None:
            renamed[name] = value
    return renamed


def check_registered(metrics: dict[str, float]) -> None:
    """Raises KeyError naming the keys that are not in the registry."""
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise KeyError(f"metrics not in the registry (gptoss_rl/metrics.py): {', '.join(unknown)}")
