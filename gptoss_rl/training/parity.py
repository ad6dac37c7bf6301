"""Whether trainer and sampler are one model: how far apart their logprobs of the same tokens are."""

import math
from typing import Any

import torch

from gptoss_rl.errors import GateError
from gptoss_rl.training.step_metrics import quantile

# First and last share of the tokens by position: a fault of RoPE or of a window grows with it and hides in the mean.
END_SHARE = 0.25
PARITY_ERRORS = 3.0  # standard errors by which a parity figure must be above its threshold


def token_positions(mask: torch.Tensor) -> torch.Tensor:
    """(tokens,) position in its sequence of each token that a (B, S) mask selects, in the order of `tensor[mask]`."""
    return torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)[mask.bool()].cpu()


def parity_statistics(experiences: list[Any]) -> dict[str, float]:
    """How far trainer and sampler are apart on the tokens that the sampler drew.

    KL is the k3 estimate of http://joschu.net/blog/kl-approx.html with samples from the sampler:
    E[exp(d) - 1 - d], d = trainer minus sampler logprob; never negative.
    """
    differences = torch.cat([(e.action_log_probs - e.rollout_log_probs)[e.action_mask.bool()].float() for e in experiences])
    return difference_statistics(differences, torch.cat([token_positions(e.action_mask) for e in experiences]))


def difference_statistics(differences: torch.Tensor, positions: torch.Tensor) -> dict[str, float]:
    """Parity figures.

    Args:
        differences: (tokens,) trainer minus sampler logprob.
        positions: (tokens,) position of each in its sequence.
    """
    differences = differences.double()  # in float32 the k3 of two near-equal models is rounding, of either sign
    sizes, k3 = differences.abs(), differences.expm1() - differences
    places = positions.float()
    early, late = sizes[places <= quantile(places, END_SHARE)], sizes[places >= quantile(places, 1 - END_SHARE)]

    def standard_error(values: torch.Tensor) -> float:
        return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else float("inf")

    return {
        "parity/abs_diff_mean": sizes.mean().item(),
        "parity/abs_diff_se": standard_error(sizes),
        "parity/abs_diff_p99": quantile(sizes, 0.99),
        "parity/abs_diff_early": early.mean().item(),
        "parity/abs_diff_late": late.mean().item(),
        "parity/abs_diff_late_se": standard_error(late),
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
        ("parity/abs_diff_late", "parity/abs_diff_late_se", max_abs_diff, "--parity_max_abs_diff"),
        ("parity/kl", "parity/kl_se", max_kl, "--parity_max_kl"),
    ):
        value, margin = statistics[key], PARITY_ERRORS * statistics[error]
        if limit > 0 and not (math.isfinite(value) and value - margin <= limit):
            raise GateError(
                "parity",
                f"{when}: trainer and sampler differ by {key} = {value:.4g} +- {statistics[error]:.2g}, allowed {limit:g} "
                f"({flag}). Likely "
                "causes: different checkpoints in --pretrain and --vllm_pretrain, an attention kernel without sinks, "
                "a sampler that ignores the adapter, a temperature that one side does not apply, or, when it grows from "
                "parity/abs_diff_early to parity/abs_diff_late, other RoPE frequencies.",
            )
