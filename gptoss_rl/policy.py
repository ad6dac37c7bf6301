"""The policy model inside the trainer: what may be loaded, how it is run, and how it is compared and synced."""

import types
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from gptoss_rl.errors import GateError
from gptoss_rl.logprob_head import HeadRequest, output_projection

if TYPE_CHECKING:
    from gptoss_rl.train_plan import RankPlan

# Rows of logits held in float32 at once: 1,024 x 201,088 x 4 bytes = 0.8 GB.
LOGIT_ROWS = 1024


def check_trainable_checkpoint(model: torch.nn.Module) -> None:
    """Refuse a policy that would train on a wrong or empty gradient.

    Raises:
        GateError: the checkpoint is still quantised (its expert kernel has no backward, LANDMINES L-3), or
            gpt-oss runs under an attention kernel that drops its sinks (L-5).
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise GateError(
            "flags",
            "the training checkpoint is quantised (its config has quantization_config); MXFP4 experts have no "
            "backward. Dequantise it once to a BF16 directory and pass that as --pretrain; the engines keep the "
            "MXFP4 checkpoint through --vllm_pretrain.",
        )
    kernel = model.config._attn_implementation
    if model.config.model_type == "gpt_oss" and kernel != "eager":
        raise GateError("flags", f"attention kernel {kernel!r} drops gpt-oss's sinks; pass --attn_implementation eager")


def enter_inference_mode(actor: torch.nn.Module) -> None:
    """`eval()`, except for the routed experts.

    In eval mode on a GPU `GptOssExperts.forward` computes every expert for every token (transformers 4.57.6
    modeling_gpt_oss.py): 8 times the work, and logprobs that differ from the training pass (LANDMINES L-6).
    The experts have no dropout, so nothing else changes.
    """
    actor.eval()
    for module in actor.modules():
        if type(module).__name__.endswith("Experts"):
            module.train()


def response_log_probs(
    model: torch.nn.Module,
    sequences: torch.Tensor,
    action_mask: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    temperature: float,
    entropy_grad: bool = False,
) -> tuple[torch.Tensor, types.SimpleNamespace]:
    """Log-probabilities of the response tokens; logits of the prompt are never computed.

    Args:
        sequences, attention_mask, position_ids: (B, S), right-padded.
        action_mask: (B, S - 1); entry t is 1 where token t + 1 was sampled.

    Returns:
        log_probs (B, S - 1), 0 outside the mask, and a namespace with `entropy` (B, S - 1, nats, detached
        unless `entropy_grad`) and `aux_loss`.
    """
    first = int(action_mask.any(dim=0).to(torch.uint8).argmax())
    # Position t predicts token t + 1, so the logits needed are those of positions first .. S - 2.
    keep = sequences.shape[1] - first
    mask = action_mask[:, first:].bool()
    labels = sequences[:, first + 1 :][mask]
    head = output_projection(model)
    chunked = hasattr(head, "request")
    if chunked:
        head.request = HeadRequest(mask, labels, temperature, entropy_grad)
    output = model(sequences, attention_mask=attention_mask, position_ids=position_ids, logits_to_keep=keep)
    logits = output["logits"]
    log_probs, entropy = (
        logits.unbind(-1) if chunked else token_log_probs(logits[:, :-1][mask], labels, temperature, entropy_grad)
    )
    full = torch.zeros(action_mask.shape, dtype=torch.float32, device=logits.device)
    where = action_mask.bool()
    extras = types.SimpleNamespace(entropy=full.masked_scatter(where, entropy), aux_loss=getattr(output, "aux_loss", None))
    return full.masked_scatter(where, log_probs), extras


def token_log_probs(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float, entropy_grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each label and entropy of each row, both (N,) float32 in nats; logits are (N, V)."""
    log_probs, entropies = [], []
    for rows, wanted in zip(logits.split(LOGIT_ROWS), labels.split(LOGIT_ROWS), strict=True):
        log_p = torch.log_softmax(rows.float() / temperature, dim=-1)
        log_probs.append(log_p.gather(-1, wanted.unsqueeze(-1)).squeeze(-1))
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropies.append(-(log_p.exp() * log_p).sum(-1))
    if not log_probs:
        empty = logits.new_zeros(0, dtype=torch.float32)
        return empty, empty
    return torch.cat(log_probs), torch.cat(entropies)


def local_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """This rank's part of every trainable gradient, as DeepSpeed will use it at the coming step."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            grad = deepspeed.utils.safe_get_local_grad(parameter) if hasattr(parameter, "ds_id") else parameter.grad
            if grad is not None:
                found[name] = grad
    return found


def checked_gradient_norm(engine: Any) -> float:
    """Global L2 norm of the gradient, measured before clipping and before the optimizer touches it.

    DeepSpeed's own figure cannot be used: under ZeRO-3 with CPU offload it reports exactly 1.0 while the
    weights turn to NaN (LANDMINES L-14).

    Raises:
        GateError: a gradient is missing or not finite; the weights have not been touched yet.
    """
    gradients = local_gradients(engine.module)
    squares = torch.stack([g.detach().float().pow(2).sum() for g in gradients.values()]).to("cpu").double()
    bad = [name for name, square in zip(gradients, squares, strict=True) if not torch.isfinite(square)]
    total = squares.sum().float().reshape(1)
    if dist.is_initialized() and dist.get_world_size() > 1:
        total = total.to(engine.device)
        dist.all_reduce(total)
    norm = total.sqrt().item()
    if bad or norm != norm or norm == float("inf"):
        raise GateError(
            "finite",
            f"the gradient of {bad[0] if bad else 'another rank'} is not finite before the optimizer step; the weights are "
            "untouched. Likely causes: a NaN or infinite reward or advantage, or an overflowing log-ratio.",
        )
    return norm


class PolicyActor:
    """Mixin of OpenRLHF's `PolicyModelActor`: sync, canary and scoring, called by the controller."""

    def start_sync(self, vllm_engines, mode: str, timeout: float) -> None:
        """Prepare weight sync once the model and the engines exist."""
        from gptoss_rl.lora_sync import LoraSync

        first = self.checkpoint_states.get("policy_version", 0)
        self.sync = LoraSync(self.actor.model.module, vllm_engines, mode=mode, timeout=timeout, first_version=first)

    def sync_policy(self) -> dict[str, Any] | None:
        """Bring the current adapter to every engine and prove it. Collective; the record on rank 0."""
        record = self.sync.sync()
        dist.barrier()
        return record

    def train_plan(self, plan: "RankPlan") -> dict[str, float]:
        """Train one global step by plan. Collective; figures of the step, equal on every rank."""
        from gptoss_rl.actor_step import PlannedTraining
        from gptoss_rl.planned_step import is_on_policy, loss_options

        args, trainer = self.strategy.args, self.trainer
        training = PlannedTraining(
            self.actor,
            lambda: self.strategy.optimizer_step(trainer.actor_optim, self.actor, trainer.actor_scheduler, name="actor"),
            loss_options(args),
            get_accelerator().current_device_name(),
            old_logprobs="current" if is_on_policy(args) and args.old_logprobs == "recompute" else args.old_logprobs,
            entropy_coef=args.entropy_loss_coef or 0.0,
            max_abs_diff=args.parity_max_abs_diff,
            max_kl=args.parity_max_kl,
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
