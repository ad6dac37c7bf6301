"""How far trainer and sampler are apart on the tokens that are trained on, over all ranks."""

from typing import Any

import torch
import torch.distributed as dist

from gptoss_rl.errors import GateError
from gptoss_rl.rollouts import check_parity, difference_statistics
from gptoss_rl.step_metrics import quantile

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
        self.truncated = self.masked = self.corrected = 0

    def add(self, differences: torch.Tensor) -> None:
        """(tokens,) trainer minus sampler logprob, at the weights that were synced."""
        self.differences.append(differences.float().cpu())

    def add_corrected(self, truncated: int, masked: int, tokens: int) -> None:
        self.truncated += truncated
        self.masked += masked
        self.corrected += tokens

    def _everyone(self) -> tuple[torch.Tensor, int, int, int]:
        empty = torch.zeros(0)
        mine = (torch.cat([empty, *self.differences]), self.truncated, self.masked, self.corrected)
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return mine
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
        return torch.cat([p[0] for p in parts]), *(sum(p[i] for p in parts) for i in (1, 2, 3))

    def check(self, max_abs_diff: float, max_kl: float, when: str) -> None:
        """Raises GateError, on every rank, when trainer and sampler are not the same model."""
        differences = self._everyone()[0]
        if len(differences):
            check_parity(difference_statistics(differences), max_abs_diff, max_kl, when)

    def reduce(self) -> dict[str, float]:
        """Figures over all ranks; 0 differences and weights of 1 when nothing was trained on. Starts the next step empty."""
        differences, truncated, masked, corrected = self._everyone()
        self._clear()
        if not len(differences):
            differences = torch.zeros(2)
        weights = differences.exp()
        tokens = max(corrected, 1)
        return {
            **difference_statistics(differences),
            "mismatch/ess": (weights.sum() ** 2 / (len(weights) * weights.pow(2).sum())).item(),
            "mismatch/weight_p01": quantile(weights, 0.01),
            "mismatch/weight_p99": quantile(weights, 0.99),
            "mismatch/weight_max": weights.max().item(),
            "mismatch/truncated": truncated / tokens,
            "mismatch/masked": masked / tokens,
        }


class MismatchGuard:
    """Stops a run whose sampler drifts away from its trainer. Lives in the controller."""

    def __init__(self, max_kl: float, patience: int):
        self.max_kl, self.patience, self.above = max_kl, patience, 0

    def must_stop(self, kl: float) -> bool:
        """Count one step; True when the limit has been exceeded in `patience` steps on end. A NaN counts as exceeding."""
        self.above = self.above + 1 if self.max_kl > 0 and not kl <= self.max_kl else 0
        return self.above >= self.patience

    def error(self, step: int, kl: float) -> GateError:
        return GateError(
            "mismatch",
            f"step {step}: KL(sampler || trainer) = {kl:.4g} nats a token, above {self.max_kl:g} (--max_mismatch_kl) in each "
            f"of the last {self.above} steps (--mismatch_patience). A checkpoint of this step was written. {CAUSES}.",
        )
