"""One global step on one actor rank, by plan: old and base logprobs where they are needed, then the optimizer steps."""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from gptoss_rl.errors import GateError
from gptoss_rl.flags import ParityLimits
from gptoss_rl.training.mismatch import MismatchMeter
from gptoss_rl.training.parity import token_positions
from gptoss_rl.training.policy import check_learning, checked_gradient_norm, enter_inference_mode
from gptoss_rl.training.policy_loss import LossOptions, constant_loss, is_on_policy, loss_options
from gptoss_rl.training.step_metrics import StepMetrics
from gptoss_rl.training.train_plan import MicroBatch, RankPlan


@contextlib.contextmanager
def adapter_disabled(model: torch.nn.Module) -> Iterator[None]:
    """Run the base model inside the policy.

    PEFT's own `disable_adapter` also switches `requires_grad` off and on, on parameters whose gradient hooks DeepSpeed
    holds; only the forward pass is wanted here.

    Raises:
        GateError: there is no adapter, so the result would be the policy itself and every KL zero.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        raise GateError("flags", "the KL to the base needs a LoRA adapter to disable, and the policy has none")
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@dataclass(frozen=True)
class TrainOptions:
    """How a run trains a plan; the same in every step."""

    loss: LossOptions
    limits: ParityLimits
    old_logprobs: str = "current"  # the step is exactly on-policy; or `recompute`, `rollout`, see `flags`
    entropy_coef: float = 0.0  # weight of the entropy bonus, 0 is off

    @staticmethod
    def of(args: argparse.Namespace) -> "TrainOptions":
        """What the launch flags ask for."""
        on_policy = is_on_policy(args) and args.old_logprobs == "recompute"
        return TrainOptions(
            loss=loss_options(args),
            limits=ParityLimits.of(vars(args)),
            old_logprobs="current" if on_policy else args.old_logprobs,
            entropy_coef=args.entropy_loss_coef or 0.0,
        )


class PlannedTraining:
    """Trains one rank's `RankPlan`. Lives in the policy actor; every rank runs it at the same time."""

    def __init__(self, actor: Any, optimizer_step: Callable[[], Any], options: TrainOptions, device: Any):
        """
        Args:
            actor: OpenRLHF's `Actor` around a DeepSpeed engine.
            optimizer_step: called at the end of each optimizer step; steps optimizer and schedule.
        """
        self.actor, self.engine, self.optimizer_step = actor, actor.model, optimizer_step
        self.options, self.device = options, device
        self.metrics = StepMetrics()
        self.mismatch = MismatchMeter()

    def run(self, plan: RankPlan) -> dict[str, float]:
        """Train the plan; figures of the step under their registered names, equal on every rank.

        Raises:
            GateError: trainer and sampler are not the same model, or something is not finite. No optimizer step is taken
                on what was refused.
        """
        start = time.perf_counter()
        old = [None] * len(plan.micro_batches())
        if self.options.old_logprobs == "recompute":
            old = self._score(plan.micro_batches())
            for batch, log_probs in zip(plan.micro_batches(), old, strict=True):
                self._observe(batch, log_probs)
            self.mismatch.check(self.options.limits, "before the optimizer step")
        base = [None] * len(old)
        if self.options.loss.kl_coef > 0:
            with adapter_disabled(self.engine.module):
                base = self._score(plan.micro_batches())
        scored = time.perf_counter()

        self.actor.train()
        parts, index = [], 0
        for number, step in enumerate(plan.steps):
            for position, batch in enumerate(step):
                # DeepSpeed would count micro-batches itself, and their number differs from step to step.
                self.engine.set_gradient_accumulation_boundary(position == len(step) - 1)
                parts.append(self._backward(batch, old[index], base[index], first_step=number == 0))
                if position < len(step) - 1:
                    self.optimizer_step()  # counts the micro-batch; takes no step before the boundary
                index += 1
            if self.options.old_logprobs != "recompute":
                self.mismatch.check(self.options.limits, "before the optimizer step")
            norm = checked_gradient_norm(self.engine)
            check_learning(norm, plan.learns[number])
            self.metrics.add_optimizer_step(norm, self.engine.get_lr()[0])
            self.optimizer_step()
        return self._figures(parts, len(plan.steps)) | {"time/experience": scored - start}

    def _score(self, batches: list[MicroBatch]) -> list[torch.Tensor]:
        enter_inference_mode(self.actor)
        with torch.no_grad():
            return [self._forward(batch)[0].cpu() for batch in batches]

    def _forward(self, batch: MicroBatch) -> tuple[torch.Tensor, Any]:
        on = {name: getattr(batch, name).to(self.device) for name in ("sequences", "action_mask", "attention_mask")}
        return self.actor(on["sequences"], on["action_mask"], attention_mask=on["attention_mask"], return_output=True,
                          return_entropy=self.options.entropy_coef != 0)  # fmt: skip

    def _observe(self, batch: MicroBatch, log_probs: torch.Tensor) -> None:
        if not batch.placeholder:
            mask = batch.action_mask.bool()
            self.mismatch.add((log_probs.cpu() - batch.rollout_log_probs)[mask], token_positions(mask))

    def _backward(self, batch: MicroBatch, old: Any, base: Any, first_step: bool) -> Any:
        log_probs, output = self._forward(batch)
        current = log_probs.detach()
        if old is None:
            old = current
            # Later steps differ from the sampler by what was learned, too.
            if first_step:
                self._observe(batch, current)
        mask = batch.action_mask.to(self.device)
        loss = constant_loss(
            log_probs, old.to(self.device), batch.rollout_log_probs.to(self.device), batch.advantages.to(self.device), mask,
            self.options.loss, None if base is None or batch.placeholder else base.to(self.device),
        )  # fmt: skip
        total = loss.loss
        if self.options.entropy_coef:
            entropy = output.entropy.masked_fill(~mask.bool(), 0.0).sum() / self.options.loss.normalizer
            total = total - self.options.entropy_coef * entropy * (not batch.placeholder)
        self.metrics.check_loss(total)
        if not batch.placeholder:
            self.metrics.add_ratios(loss.ratios)
            self.metrics.add_entropy(output.entropy, mask)
            self.mismatch.add_corrected(loss.importance.truncated, loss.importance.masked, int(mask.sum()))
        # DeepSpeed takes the mean over ranks; the loss is a sum over all samples. It must not divide by its own idea of
        # the number of micro-batches either.
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        self.engine.backward(total * ranks, scale_wrt_gas=False)
        return (loss.policy, loss.kl, 0 if batch.placeholder else int(mask.sum()))

    def _figures(self, parts: list[tuple[float, float, int]], steps: int) -> dict[str, float]:
        sums = torch.tensor(parts, dtype=torch.float64).sum(dim=0)
        if torch.distributed.is_initialized():
            sums = sums.to(self.device)
            torch.distributed.all_reduce(sums)
        policy, kl, tokens = sums.tolist()
        return {
            "loss/policy": policy / steps,
            "policy/kl_to_base": kl / max(tokens, 1.0),
            **self.metrics.reduce(),
            **self.mismatch.reduce(),
        }
