"""What one training step looked like: collected per micro-batch, reduced over ranks once per global step.

Means of means and means of quantiles are not what their names say, so raw values are kept until the end of
the step: 128 samples of 2,500 tokens are 320,000 floats.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from gptoss_rl.errors import GateError


def clip_log_ratio(log_ratio: torch.Tensor, limit: float) -> torch.Tensor:
    """Clamp to [-limit, limit] nats so that `exp` cannot overflow; unchanged when limit is 0.

    A clamped entry passes no gradient, and neither would PPO's clip, which is far inside the limit.
    """
    return log_ratio.clamp(-limit, limit) if limit > 0 else log_ratio


@dataclass(frozen=True)
class RatioStatistics:
    """Log-ratio of the new to the old policy on the response tokens of one micro-batch."""

    log_ratios: torch.Tensor  # (tokens,) nats
    clipped_low: int  # tokens whose ratio left the trust region downwards where that stops the gradient
    clipped_high: int

    @staticmethod
    @torch.no_grad()
    def of(
        log_ratio: torch.Tensor, mask: torch.Tensor, advantages: torch.Tensor, eps_low: float, eps_high: float
    ) -> "RatioStatistics":
        """From (B, A) tensors; only entries where `mask` is 1 count."""
        where = mask.bool()
        values, signs = log_ratio[where].float(), advantages[where]
        ratios = values.exp()
        low = ((ratios < 1 - eps_low) & (signs < 0)).sum()
        high = ((ratios > 1 + eps_high) & (signs > 0)).sum()
        return RatioStatistics(values.cpu(), int(low), int(high))


class StepMetrics:
    """Accumulates over the micro-batches of a global step, on every rank."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.ratios: list[RatioStatistics] = []
        self.entropies: list[torch.Tensor] = []
        self.advantages: list[torch.Tensor] = []
        self.gradient_norms: list[float] = []
        self.learning_rates: list[float] = []

    def add_ratios(self, statistics: RatioStatistics) -> None:
        self.ratios.append(statistics)

    def add_micro_batch(self, loss: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, entropy: torch.Tensor) -> None:
        """Record one micro-batch, before its backward.

        Args:
            advantages, mask, entropy: (B, A); one advantage a sample is recorded, that of its last token.

        Raises:
            GateError: the loss is not finite.
        """
        self.check_loss(loss)
        self.add_entropy(entropy, mask)
        last = mask.shape[1] - 1 - mask.long().flip(1).argmax(dim=1)
        self.advantages.append(advantages.gather(1, last.unsqueeze(1)).squeeze(1).float().cpu())

    def check_loss(self, loss: torch.Tensor) -> None:
        """Raises GateError unless the loss is finite; called before its backward."""
        if not torch.isfinite(loss):
            raise GateError(
                "finite",
                f"the loss is {loss.item()} before the backward pass; the weights are untouched. Likely causes: a "
                "NaN or infinite reward or advantage, or an overflowing log-ratio (--log_ratio_clip).",
            )

    def add_entropy(self, entropy: torch.Tensor, mask: torch.Tensor) -> None:
        """Token entropies, (B, A) nats, of one micro-batch."""
        self.entropies.append(entropy.detach()[mask.bool()].float().cpu())

    def add_optimizer_step(self, norm: float, learning_rate: float) -> None:
        """Record an optimizer step before it is taken: the schedule moves on with it, and the rate is then the next one's."""
        self.gradient_norms.append(norm)
        self.learning_rates.append(learning_rate)

    def reduce(self) -> dict[str, float]:
        """Statistics of the whole step over all ranks, equal on each of them; starts the next step empty."""
        empty = torch.zeros(0)  # a planned step may have had nothing to learn from
        mine = (
            torch.cat([empty, *(r.log_ratios for r in self.ratios)]),
            sum(r.clipped_low for r in self.ratios),
            sum(r.clipped_high for r in self.ratios),
            torch.cat([empty, *self.entropies]),
            torch.cat([empty, *self.advantages]),
        )
        everyone = [mine]
        if dist.is_initialized() and dist.get_world_size() > 1:
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
        log_ratios = torch.cat([part[0] for part in everyone])
        entropies = torch.cat([part[3] for part in everyone])
        advantages = torch.cat([part[4] for part in everyone])
        norms, rates = torch.tensor(self.gradient_norms), self.learning_rates
        self._clear()
        tokens = max(1, log_ratios.numel())
        if not log_ratios.numel():
            log_ratios = entropies = torch.zeros(1)
        return {
            **(advantage_statistics(advantages) if advantages.numel() else {}),
            "ratio/log_ratio_mean": log_ratios.mean().item(),
            "ratio/log_ratio_max": log_ratios.abs().max().item(),
            "ratio/log_ratio_p99": quantile(log_ratios.abs(), 0.99),
            "ratio/clipped_low": sum(part[1] for part in everyone) / tokens,
            "ratio/clipped_high": sum(part[2] for part in everyone) / tokens,
            "policy/entropy": entropies.mean().item(),
            "optimizer/gradient_norm": norms.mean().item(),
            "optimizer/gradient_norm_max": norms.max().item(),
            "optimizer/steps": float(len(norms)),
            "optimizer/learning_rate": sum(rates) / len(rates),
        }


def advantage_statistics(advantages: torch.Tensor) -> dict[str, float]:
    """Figures of a (samples,) tensor."""
    return {
        "advantage/mean": advantages.mean().item(),
        "advantage/std": advantages.std(unbiased=False).item(),
        "advantage/max_abs": advantages.abs().max().item(),
    }


def quantile(values: torch.Tensor, q: float) -> float:
    """Quantile by sorting; `torch.quantile` refuses more than 16 million values."""
    ordered = values.sort().values
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)].item()
