"""The policy as an actor of the trainer: synced to the engines, trained by plan, perturbed by the canary."""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from gptoss_rl.sync.lora_sync import LoraSync
from gptoss_rl.training.actor_step import PlannedTraining, TrainOptions
from gptoss_rl.training.checkpoints import fingerprint_of_base
from gptoss_rl.training.policy import restore_rotary_frequencies
from gptoss_rl.training.train_plan import RankPlan


class PolicyActor:
    """Mixin of OpenRLHF's `PolicyModelActor`: sync, canary and scoring, called by the controller."""

    def start_sync(self, vllm_engines, mode: str, timeout: float) -> None:
        """Prepare weight sync once the model and the engines exist, before the first forward pass."""
        restore_rotary_frequencies(self.actor.model.module)
        fingerprint_of_base(self.actor.model.module.peft_config["default"].base_model_name_or_path)
        first = self.checkpoint_states.get("policy_version", 0)
        self.sync = LoraSync(self.actor.model.module, vllm_engines, mode=mode, timeout=timeout, first_version=first)

    def sync_policy(self) -> dict[str, Any] | None:
        """Bring the current adapter to every engine and prove it. Collective; the record on rank 0."""
        record = self.sync.sync()
        dist.barrier()
        return record

    def train_plan(self, plan: RankPlan) -> dict[str, float]:
        """Train one global step by plan. Collective; figures of the step, equal on every rank."""
        trainer = self.trainer
        training = PlannedTraining(
            self.actor,
            lambda: self.strategy.optimizer_step(trainer.actor_optim, self.actor, trainer.actor_scheduler, name="actor"),
            TrainOptions.of(self.strategy.args),
            get_accelerator().current_device_name(),
        )
        figures = training.run(plan)
        get_accelerator().empty_cache()
        return figures

    def perturb_lora(self, std: float, seed: int) -> None:
        """Add seeded Gaussian noise of standard deviation `std` to every LoRA B; undone by `restore_lora`."""
        self._saved_B = []
        generator = torch.Generator().manual_seed(seed)
        for (_, matrix), parameter in self.sync.parameters.items():
            if matrix != "B":
                continue
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
                self._saved_B.append(parameter.detach().clone())
                noise = torch.randn(parameter.shape, generator=generator) * std
                # Every rank draws, so that generators stay in step; ZeRO keeps rank 0's values.
                parameter.data.add_(noise.to(parameter.device, parameter.dtype))

    def restore_lora(self) -> None:
        """Put back, bit for bit, what `perturb_lora` changed."""
        parameters = [p for (_, matrix), p in self.sync.parameters.items() if matrix == "B"]
        for parameter, saved in zip(parameters, self._saved_B, strict=True):
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
                parameter.data.copy_(saved)
        self._saved_B = []
