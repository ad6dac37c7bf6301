"""Shared by tests of the planned step: a policy in one process, made-up samples, and the paper's gradient."""

import types
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from gptoss_rl.flags import ParityLimits
from gptoss_rl.training.actor_step import PlannedTraining, TrainOptions
from gptoss_rl.training.policy import response_log_probs
from gptoss_rl.training.policy_loss import LossOptions
from gptoss_rl.training.train_plan import PlanOptions, RankPlan, plan_global_step

GROUP, MAX_RESPONSE = 4, 24
# One group all wrong, one all right, two with variance.
REWARDS = torch.tensor([0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 0.0])


class FakeEngine:
    """What `PlannedTraining` asks of a DeepSpeed engine, without sharding: the mean gradient over ranks."""

    def __init__(self, module: torch.nn.Module):
        self.module, self.boundary, self.steps, self.rate = module, None, 0, 0.5

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def set_gradient_accumulation_boundary(self, boundary: bool) -> None:
        self.boundary = boundary

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        assert not scale_wrt_gas, "the loss would be divided by a number of micro-batches that is not the real one"
        loss.backward()

    def get_lr(self) -> list[float]:
        return [self.rate]

    device = "cpu"


class FakeActor(torch.nn.Module):
    """OpenRLHF's `Actor` as far as a planned step uses it."""

    def __init__(self, policy: torch.nn.Module):
        super().__init__()
        self.policy = policy
        self.model = FakeEngine(policy)

    def forward(self, sequences, action_mask, *, attention_mask, return_output, return_entropy):
        positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        return response_log_probs(self.model, sequences, action_mask, attention_mask, positions, 1.0, return_entropy)


def make_samples(count: int, vocabulary: int, seed: int = 0) -> list[Any]:
    """Experiences of one sample each, of very different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    samples = []
    for _ in range(count):
        prompt, response = whole(3, 9), whole(1, MAX_RESPONSE + 1)
        tokens = torch.randint(3, vocabulary, (1, prompt + response), generator=generator)
        mask = torch.zeros(1, prompt + response - 1, dtype=torch.long)
        mask[0, prompt - 1 :] = 1
        samples.append(
            types.SimpleNamespace(
                sequences=tokens,
                attention_mask=torch.ones_like(tokens),
                action_mask=mask,
                rollout_log_probs=torch.full(mask.shape, -5.0) * mask,
            )
        )
    return samples


def make_plans(samples: list[Any], advantages: torch.Tensor, **changes: Any) -> list[RankPlan]:
    options = PlanOptions(
        group_size=GROUP, train_batch_size=len(samples), micro_batch_size=4, max_tokens=None, ranks=1,
        skip_zero_advantage=True, sort_by_length=True, pad_token_id=0,
    )  # fmt: skip
    seed = changes.pop("seed", 1)
    return plan_global_step(samples, advantages, replace(options, **changes), seed)[0]


NO_LIMITS = ParityLimits(parity_max_abs_diff=0.0, parity_max_kl=0.0)


def training(policy: torch.nn.Module, samples: int, *, old_logprobs: str = "current", optimizer_step=None,
             limits: ParityLimits = NO_LIMITS, **loss: Any) -> PlannedTraining:  # fmt: skip
    options = LossOptions(samples=samples, max_response=MAX_RESPONSE, eps_low=0.2, eps_high=0.2, **loss)
    actor = FakeActor(policy)
    return PlannedTraining(actor, optimizer_step or (lambda: None), TrainOptions(options, limits, old_logprobs), "cpu")


def gradients(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def paper_gradients(policy: torch.nn.Module, samples: list[Any], advantages: torch.Tensor) -> dict[str, torch.Tensor]:
    """Equation of arXiv 2503.20783 at ratio 1, sample by sample, without padding, masks or any code under test."""
    policy.zero_grad()
    for sample, advantage in zip(samples, advantages, strict=True):
        tokens = sample.sequences
        log_p = torch.log_softmax(policy(tokens).logits[0].float(), dim=-1)
        first = int(sample.action_mask.argmax()) + 1
        chosen = [log_p[t - 1, tokens[0, t]] for t in range(first, tokens.shape[1])]
        (-advantage * sum(chosen) / (len(samples) * MAX_RESPONSE)).backward()
    return gradients(policy)


def relative_error(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest over parameters of |got - wanted| / |wanted|, L2 norms."""
    assert got.keys() == wanted.keys()
    return max(((got[k] - wanted[k]).norm() / wanted[k].norm()).item() for k in wanted)


def run_on_rank(rank: int, ranks: int, folder: str, port: int) -> None:
    """One of several real processes; rank 0 leaves the averaged gradients in `folder`."""
    from gptoss_rl.models.random_model import random_adapter
    from gptoss_rl.training.train_plan import group_advantages

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    policy = random_adapter(folder, rank=4)
    samples = make_samples(len(REWARDS), policy.config.vocab_size)
    plan = make_plans(samples, group_advantages(REWARDS, GROUP), ranks=ranks, micro_batch_size=3)[rank]
    training(policy, len(samples)).run(plan)
    grads = gradients(policy)
    for grad in grads.values():
        dist.all_reduce(grad)
        grad /= ranks
    if rank == 0:
        torch.save(grads, f"{folder}/gradients.pt")
    dist.destroy_process_group()
