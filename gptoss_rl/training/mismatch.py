"""How far trainer and sampler are apart on the tokens that are trained on, over all ranks."""

from typing import Any

import torch
import torch.distributed as dist

from gptoss_rl.errors import GateError
from gptoss_rl.flags import ParityLimits
from gptoss_rl.training.parity import check_parity, difference_statistics
from gptoss_rl.training.step_metrics import quantile

CAUSES = (
    "Likely causes: a learning rate at which the sampler's bf16 rounding of the adapter matters, an adapter scale or "
    "module that one side does not apply, another attention kernel or expert kernel in the engine, or a merge whose "
    "rounding loses most of the update (sync/dead_zone_share)"
)


class MismatchMeter:
    """Collects trainer minus sampler logprobs of one global step."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.differences: list[torch.Tensor] = []
        self.positions: list[torch.Tensor] = []
        self.truncated = self.masked = self.corrected = 0

    def add(self, differences: torch.Tensor, positions: torch.Tensor) -> None:
        """(tokens,) trainer minus sampler logprob, at the weights that were synced, and positions in the sequences."""
        self.differences.append(differences.float().cpu())
        self.positions.append(positions.cpu())

    def add_corrected(self, truncated: int, masked: int, tokens: int) -> None:
        self.truncated += truncated
        self.masked += masked
        self.corrected += tokens

    def _everyone(self) -> tuple[torch.Tensor, torch.Tensor, int, int, int]:
        tokens = [torch.cat([torch.zeros(0), *parts]) for parts in (self.differences, self.positions)]
        mine = (*tokens, self.truncated, self.masked, self.corrected)
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return mine
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
        return *(torch.cat([p[i] for p in parts]) for i in (0, 1)), *(sum(p[i] for p in parts) for i in (2, 3, 4))

    def check(self, limits: ParityLimits, when: str) -> None:
        """Raises GateError, on every rank, when trainer and sampler are not the same model or no token was compared."""
        differences, positions = self._everyone()[:2]
        if not len(differences):
            raise GateError("parity", f"{when}: not one token of trainer and sampler was compared")
        check_parity(difference_statistics(differences, positions), limits.parity_max_abs_diff, limits.parity_max_kl, when)

    def reduce(self) -> dict[str, float]:
        """Figures over all ranks; starts the next step empty."""
        differences, positions, truncated, masked, corrected = self._everyone()
        self._clear()
        weights = differences.exp()
        tokens = max(corrected, 1)
        return {
            **difference_statistics(differences, positions),
            "mismatch/ess": effective_share(differences),
            "mismatch/weight_p01": quantile(weights, 0.01),
            "mismatch/weight_p99": quantile(weights, 0.99),
            "mismatch/weight_max": weights.max().item(),
            "mismatch/truncated": truncated / tokens,
            "mismatch/masked": masked / tokens,
        }


def effective_share(log_weights: torch.Tensor) -> float:
    """Effective sample size (Kish) of importance weights as a share of their number: (sum w)^2 / (n sum w^2), in (0, 1].

    From (tokens,) log weights: one weight beyond float32 would make it NaN. The minimum is for equal weights, whose
    quotient is 1 up to rounding.
    """
    log_weights = log_weights.double()
    share = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
    return min(share.exp().item() / len(log_weights), 1.0)


class MismatchGuard:
    """Stops a run whose sampler drifts away from its trainer. Lives in the controller."""

    def __init__(self, limits: ParityLimits):
        self.limits, self.above = limits, 0

    def must_stop(self, kl: float) -> bool:
        """Count one step; True when the limit has been exceeded in `patience` steps on end. A NaN counts as exceeding."""
        limit = self.limits.max_mismatch_kl
        self.above = self.above + 1 if limit > 0 and not kl <= limit else 0
        return self.above >= self.limits.mismatch_patience

    def error(self, step: int, kl: float) -> GateError:
        return GateError(
            "mismatch",
            f"step {step}: KL(sampler || trainer) = {kl:.4g} nats a token, above {self.limits.max_mismatch_kl:g} "
            f"(--max_mismatch_kl) in each of the last {self.above} steps (--mismatch_patience). A checkpoint of this step was "
            f"written. {CAUSES}.",
        )
