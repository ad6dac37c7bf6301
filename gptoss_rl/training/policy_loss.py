"""The Dr. GRPO loss with a constant normaliser, and the correction for a sampler that is not quite the trainer.

"Understanding R1-Zero-Like Training" (arXiv 2503.20783), section 3: the policy gradient of the group-mean advantage is a
sum over response tokens, without 1/|o| and without 1/std. Dividing that sum by one constant, samples of the optimizer
step times the longest possible response, leaves a gradient that does not know how samples were dealt to micro-batches,
ranks and accumulation steps. A mean over the tokens of a micro-batch, OpenRLHF's `token_level_loss`, does: with one
sample in it, it is the length bias that the paper removes.
"""

import argparse
from dataclasses import dataclass

import torch

from gptoss_rl.training.step_metrics import RatioStatistics, clip_log_ratio

CORRECTIONS = ("none", "tis", "icepop", "seq_mask")
# (low, high) bounds of the importance weight of trainer against sampler.
# tis       truncation from above alone. 2 is what "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"
#           (fengyao.notion.site/off-policy-rl) recommends; a lower bound would raise weights, which is no truncation.
# icepop    0.5 and 5 are the values of the method's authors (Ring-1T report, arXiv 2510.18855): outside, weight 0.
# seq_mask  geometric mean over a response. 2 % a token is far outside what two implementations of one bf16 model
#           differ by in the mean, where signs cancel.
DEFAULT_BOUNDS = {"none": (0.0, float("inf")), "tis": (0.0, 2.0), "icepop": (0.5, 5.0), "seq_mask": (0.98, 1.02)}


@dataclass(frozen=True)
class LossOptions:
    """What the loss of one optimizer step depends on besides the tokens."""

    samples: int  # of the optimizer step over all ranks, skipped ones included
    max_response: int  # tokens, --generate_max_len
    eps_low: float
    eps_high: float
    log_ratio_clip: float = 20.0  # nats
    correction: str = "none"
    weight_low: float = 0.0
    weight_high: float = float("inf")
    kl_coef: float = 0.0

    @property
    def normalizer(self) -> float:
        return float(self.samples * self.max_response)


@dataclass(frozen=True)
class ImportanceWeights:
    """Weights of a micro-batch, and what the correction did to them."""

    weights: torch.Tensor  # (B, A), detached
    truncated: int  # tokens whose weight was cut
    masked: int  # tokens whose weight became 0


@torch.no_grad()
def importance_weights(log_ratio: torch.Tensor, mask: torch.Tensor, options: LossOptions) -> ImportanceWeights:
    """Weights pi_trainer / pi_sampler under the chosen correction.

    Args:
        log_ratio: (B, A) trainer minus sampler logprob, at the weights that were synced.
        mask: (B, A), 1 on response tokens.
    """
    where = mask.bool()
    ratio = clip_log_ratio(log_ratio.float(), options.log_ratio_clip).exp()
    low, high = options.weight_low, options.weight_high
    nothing = torch.zeros_like(where)
    if options.correction == "none":
        weights, truncated, masked = torch.ones_like(ratio), nothing, nothing
    elif options.correction == "tis":
        weights, truncated, masked = ratio.clamp(max=high), ratio > high, nothing
    elif options.correction == "icepop":
        masked = (ratio < low) | (ratio > high)
        weights, truncated = ratio.masked_fill(masked, 0.0), nothing
    elif options.correction == "seq_mask":
        lengths = where.sum(dim=1, keepdim=True).clamp(min=1)
        geometric = ((log_ratio.float() * where).sum(dim=1, keepdim=True) / lengths).exp()
        masked = ((geometric < low) | (geometric > high)).expand_as(where)
        cut = DEFAULT_BOUNDS["tis"][1]
        weights, truncated = ratio.clamp(max=cut).masked_fill(masked, 0.0), (ratio > cut) & ~masked
    else:
        raise ValueError(f"correction {options.correction!r} is not one of {', '.join(CORRECTIONS)}")
    return ImportanceWeights(weights, int((truncated & where).sum()), int((masked & where).sum()))


@dataclass(frozen=True)
class LossParts:
    """Loss of one micro-batch and what it is made of."""

    loss: torch.Tensor  # scalar: this micro-batch's share of the optimizer step's loss
    policy: float
    kl: float  # sum over tokens of the k3 estimate, not normalised
    ratios: RatioStatistics
    importance: ImportanceWeights


def constant_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    rollout_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    options: LossOptions,
    base_log_probs: torch.Tensor | None = None,
) -> LossParts:
    """One micro-batch's share of the Dr. GRPO loss; the shares of an optimizer step add up to its loss.

    Args:
        log_probs, old_log_probs, rollout_log_probs, base_log_probs: (B, A) of the policy being trained, of the policy
            before the step, of the sampler, of the base model. Only `log_probs` carries a gradient.
        advantages: (B,), reward minus group mean.
        mask: (B, A), 1 on response tokens.
    """
    where = mask.bool()
    log_ratio = log_probs.float() - old_log_probs.float()
    ratio = clip_log_ratio(log_ratio, options.log_ratio_clip).exp()
    advantages = advantages.float().unsqueeze(1).expand_as(ratio)
    clipped = ratio.clamp(1 - options.eps_low, 1 + options.eps_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    importance = importance_weights(old_log_probs - rollout_log_probs, where, options)
    policy = -(importance.weights * surrogate).masked_fill(~where, 0.0).sum() / options.normalizer
    loss, kl = policy, 0.0
    if base_log_probs is not None:
        # k3 of http://joschu.net/blog/kl-approx.html, of the policy against the base.
        difference = clip_log_ratio(base_log_probs.float() - log_probs.float(), options.log_ratio_clip)
        k3 = (difference.expm1() - difference).masked_fill(~where, 0.0).sum()
        loss, kl = policy + options.kl_coef * k3 / options.normalizer, k3.item()
    statistics = RatioStatistics.of(log_ratio.detach(), mask, advantages, options.eps_low, options.eps_high)
    return LossParts(loss, policy.item(), kl, statistics, importance)


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
