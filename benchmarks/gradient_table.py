"""How far the constant normaliser and upstream's token mean are from the paper's gradient, by micro-batch size.

Relative error of the LoRA gradient (all parameters as one vector) of a tiny gpt-oss in float32 against a reference written
from the equation of arXiv 2503.20783, sample by sample. The token mean has another scale, so its gradient is scaled to fit
best: what is left is the error of its direction.

    python benchmarks/gradient_table.py
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from planned import GROUP, REWARDS, FakeActor, gradients, make_plans, make_samples, paper_gradients, training

from gptoss_rl.models.random_model import random_adapter, save_random_gpt_oss
from gptoss_rl.training.train_plan import group_advantages


def flat(grads: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
    return torch.cat([grads[name].flatten() for name in names])


def token_mean(policy: torch.nn.Module, samples: list, advantages: torch.Tensor, micro_batch: int) -> dict[str, torch.Tensor]:
    """OpenRLHF 0.9.3: mean over the tokens of a micro-batch, mean over micro-batches."""
    policy.zero_grad()
    (plan,) = make_plans(samples, advantages, micro_batch_size=micro_batch, skip_zero_advantage=False, sort_by_length=False)
    batches, actor = plan.micro_batches(), FakeActor(policy)
    for batch in batches:
        log_probs, _ = actor(batch.sequences, batch.action_mask, attention_mask=batch.attention_mask, return_output=True,
                             return_entropy=False)  # fmt: skip
        loss = -(log_probs * batch.advantages.unsqueeze(1) * batch.action_mask).sum() / batch.action_mask.sum()
        (loss / len(batches)).backward()
    return gradients(policy)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_random_gpt_oss(Path(folder))
        policy = random_adapter(Path(folder), rank=4).train()
    samples, advantages = make_samples(len(REWARDS), policy.config.vocab_size), group_advantages(REWARDS, GROUP)
    reference = paper_gradients(policy, samples, advantages)
    names = sorted(reference)
    wanted = flat(reference, names)
    print(f"{'micro-batch':>11s} {'constant':>10s} {'token mean':>11s}")
    for micro_batch in (1, 2, 4, 8):
        policy.zero_grad()
        (plan,) = make_plans(samples, advantages, micro_batch_size=micro_batch)
        training(policy, len(samples)).run(plan)
        constant = flat(gradients(policy), names)
        mean = flat(token_mean(policy, samples, advantages, micro_batch), names)
        mean = mean * (mean @ wanted) / (mean @ mean)
        errors = [((got - wanted).norm() / wanted.norm()).item() for got in (constant, mean)]
        print(f"{micro_batch:11d} {errors[0]:10.1e} {errors[1]:11.3f}")


if __name__ == "__main__":
    main()
