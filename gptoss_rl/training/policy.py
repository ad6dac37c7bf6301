"""The policy model inside the trainer: what may be loaded, how it is run and scored, and its gradients."""

import types
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from gptoss_rl.errors import GateError
from gptoss_rl.training.logprob_head import HeadRequest, output_projection

# Rows of logits held in float32 at once: 1,024 x 201,088 x 4 bytes = 0.8 GB.
LOGIT_ROWS = 1024


def check_trainable_checkpoint(model: torch.nn.Module) -> None:
    """Refuse a policy that would train on a wrong or empty gradient.

    Raises:
        GateError: the checkpoint is still quantised (its expert kernel has no backward), or
            gpt-oss runs under an attention kernel that drops its sinks.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise GateError(
            "flags",
            "the training checkpoint is quantised (its config has quantization_config); MXFP4 experts have no "
            "backward. Make it BF16 once (python dequantize_mxfp4.py) and pass that as --pretrain; the engines keep the "
            "MXFP4 checkpoint through --vllm_pretrain.",
        )
    kernel = model.config._attn_implementation
    if model.config.model_type == "gpt_oss" and kernel != "eager":
        raise GateError("flags", f"attention kernel {kernel!r} drops gpt-oss's sinks; pass --attn_implementation eager")


def enter_inference_mode(actor: torch.nn.Module) -> None:
    """`eval()`, except for the routed experts.

    In eval mode on a GPU `GptOssExperts.forward` computes every expert for every token (transformers 4.57.6
    modeling_gpt_oss.py): 8 times the work, and logprobs that differ from the training pass.
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
    weights turn to NaN.

    Raises:
        GateError: a gradient is missing or not finite; the weights have not been touched yet. Every rank has every
            parameter, so a missing one is missing everywhere and no rank waits for another.
    """
    gradients = local_gradients(engine.module)
    missing = [n for n, p in engine.module.named_parameters() if p.requires_grad and n not in gradients]
    if missing:
        raise GateError("gradient", f"{len(missing)} trainable matrices have no gradient, {missing[0]} among them: no loss "
                        "reached them, so they would never be trained")  # fmt: skip
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


def check_learning(norm: float, learns: bool) -> None:
    """Refuse an optimizer step without a gradient although some of its samples have an advantage.

    Adam would go on by its momentum alone, and every other figure would look healthy.

    Args:
        norm: of `checked_gradient_norm`, all ranks.
        learns: some sample of the step, on any rank, has an advantage other than 0.

    Raises:
        GateError: the norm is exactly 0.
    """
    if learns and norm == 0:
        raise GateError(
            "gradient",
            "samples have an advantage and the gradient is exactly 0; the weights are untouched. Likely causes: a "
            "correction that masks or weighs every token with 0 (--is_correction, --is_weight_low, --is_weight_high, "
            "mismatch/masked), or a clip so tight that no token is inside (--eps_clip).",
        )


def restore_rotary_frequencies(model: torch.nn.Module) -> None:
    """Compute RoPE's frequencies again, in float32, where the sampler has them. Before the first forward pass.

    ZeRO-3 in bf16 rounds them twice: transformers computes YaRN's ramp inside `zero.Init`, which turns every new float
    tensor into bf16 (DeepSpeed 0.18.5, partition_parameters.py, `zero_wrapper_for_fp_tensor_constructor`), and
    `deepspeed.initialize` casts the buffer itself. A frequency is then off by up to 5 %, and the angle of a token by that
    times its position: at gpt-oss-20b's size a mean difference of 0.07 nats over the first 128 tokens and of 0.21 from the
    1,000th on, where 0.06 is rounding (results/2026-11-25_h100).
    """
    for module in model.modules():
        if hasattr(module, "rope_init_fn"):
            frequencies, module.attention_scaling = module.rope_init_fn(module.config, module.inv_freq.device)
            module.inv_freq = module.original_inv_freq = frequencies.float()
