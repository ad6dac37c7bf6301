"""Log-probabilities straight from hidden states: the logits of a whole batch never exist.

2 x 4,096 tokens x 201,088 words in float32 are 6.6 GB, and upstream holds them several times over. Here the frozen
output projection is applied to a few rows at a time, and each row's gradient is reduced to the size of a hidden state at
once. That is possible because the loss sees a row only through two numbers, its logprob and its entropy: d(loss)/d(hidden)
is d(loss)/d(logprob) times a vector that is known in the forward pass. So nothing is computed twice, either.

Liger's fused linear losses were looked at: they compute the loss as well, under their own normalisers and without the
ratio statistics, and need Triton.
"""

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


class FrozenHeadLogProbs(torch.autograd.Function):
    """(hidden, weight, labels) -> (logprobs, entropies), `rows` rows of logits at a time; no gradient for the weight."""

    @staticmethod
    def forward(ctx: Any, hidden, weight, labels, temperature: float, rows: int, entropy_grad: bool):
        """
        Args:
            hidden: (N, H). weight: (V, H). labels: (N,).

        Returns:
            Log-probability of each label and entropy of each row, both (N,) float32 in nats.
        """
        wants_grad = ctx.needs_input_grad[0]
        log_probs = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(log_probs)
        # d(logprob)/d(hidden) and d(entropy)/d(hidden), (N, H) each.
        log_prob_grad = torch.empty_like(hidden) if wants_grad else None
        entropy_grads = torch.empty_like(hidden) if wants_grad and entropy_grad else None
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            label = labels[part].unsqueeze(1)
            log_p = torch.mm(hidden[part], weight.t()).float()
            if temperature != 1.0:
                log_p.div_(temperature)
            log_p.sub_(torch.logsumexp(log_p, dim=1, keepdim=True))
            log_probs[part] = log_p.gather(1, label).squeeze(1)
            p = log_p.exp()
            entropies[part] = -torch.linalg.vecdot(p, log_p)
            if entropy_grads is not None:
                # dH/dlogit = -p (log p + H)
                inner = log_p.add_(entropies[part].unsqueeze(1)).mul_(p).neg_().div_(temperature)
                entropy_grads[part] = torch.mm(inner.to(weight.dtype), weight)
            if log_prob_grad is not None:
                # d(logprob)/dlogit = onehot - p
                p.neg_().scatter_add_(1, label, torch.ones_like(label, dtype=p.dtype)).div_(temperature)
                log_prob_grad[part] = torch.mm(p.to(weight.dtype), weight)
        ctx.save_for_backward(log_prob_grad, entropy_grads)
        if not entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, grad_log_probs, grad_entropies):
        log_prob_grad, entropy_grads = ctx.saved_tensors
        # The factor comes in float32 and may be tiny; it must not be rounded before it is applied.
        grad = grad_log_probs.unsqueeze(1) * log_prob_grad.float()
        if entropy_grads is not None:
            grad = grad + grad_entropies.unsqueeze(1) * entropy_grads.float()
        return grad.to(log_prob_grad.dtype), None, None, None, None, None


@dataclass
class HeadRequest:
    """What the output projection shall return instead of logits, for one forward pass."""

    mask: torch.Tensor  # (B, positions) bool, over the hidden states but the last
    labels: torch.Tensor  # (N,), in the mask's order
    temperature: float
    entropy_grad: bool


def install_log_prob_head(model: nn.Module, rows: int) -> bool:
    """Let the model's output projection answer a `HeadRequest`; without one it still returns logits.

    The projection is changed in place, not wrapped: under ZeRO-3 the hooks that gather its weight belong to the module,
    and they run around its `forward`.

    Args:
        rows: rows of logits to hold at once.

    Returns:
        False when the projection is not a frozen linear layer without bias; logits are then computed as before.
    """
    head = output_projection(model)
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad or rows < 1:
        return False

    def forward(self: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        request, self.request = self.request, None
        if request is None:
            return nn.functional.linear(hidden, self.weight)
        chosen = hidden[:, :-1][request.mask]
        log_probs, entropies = FrozenHeadLogProbs.apply(
            chosen, self.weight, request.labels, request.temperature, rows, request.entropy_grad
        )
        return torch.stack([log_probs, entropies], dim=-1)

    head.request = None
    head.forward = types.MethodType(forward, head)
    return True


def output_projection(model: nn.Module) -> nn.Module:
    """The output projection inside DeepSpeed's and PEFT's wrappers."""
    while hasattr(model, "module"):
        model = model.module
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return model.get_output_embeddings()
