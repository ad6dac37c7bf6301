"""Tokens that the actor processes in a global step, padding included: OpenRLHF 0.9.3 against the planned step.

Rollouts are made up after the real job's: 16 prompts x 8 samples, responses of 2,500 tokens in the mean that spread to the
limit of 4,096 (harder problems have longer ones), half of the groups without variance. Counted are both passes over a
rollout: old logprobs and training. 0.9.3 puts samples together in the order they came (old logprobs) and shuffled
(training); its own code pads them to the longest of a micro-batch.

    python benchmarks/bench_actor_tokens.py
"""

import argparse
import statistics
import types
from typing import Any

import torch

from gptoss_rl.training.train_plan import PlanOptions, group_advantages, plan_global_step

PROMPTS, GROUP, RANKS = 16, 8, 4
MEAN_RESPONSE, MAX_RESPONSE = 2500, 4096
MAX_TOKENS = 5120  # of a micro-batch, --micro_batch_max_tokens of the 20B launchers


def make_rollout(generator: torch.Generator, dead_share: float) -> tuple[list[Any], torch.Tensor]:
    """Samples, and the advantage of each."""
    samples, rewards = [], []
    dead = torch.randperm(PROMPTS, generator=generator) < round(dead_share * PROMPTS)
    for prompt in range(PROMPTS):
        prompt_tokens = int(torch.randint(80, 350, (1,), generator=generator))
        # After cutting at the limit the mean is near MEAN_RESPONSE; `main` prints it.
        center = MEAN_RESPONSE + 40 + 900 * torch.randn(1, generator=generator).item()
        right = torch.zeros(GROUP) if prompt % 2 else torch.ones(GROUP)
        if not dead[prompt]:
            while right.min() == right.max():
                right = (torch.rand(GROUP, generator=generator) < 0.5).float()
        for reward in right:
            noise = 800 * torch.randn(1, generator=generator).item()
            response = int(min(max(center + noise, 150), MAX_RESPONSE))
            samples.append(fake_sample(prompt_tokens, response))
            rewards.append(reward)
    return samples, group_advantages(torch.stack(rewards), GROUP)


def fake_sample(prompt: int, response: int) -> Any:
    tokens = torch.zeros(1, prompt + response, dtype=torch.int8)
    mask = torch.zeros(1, prompt + response - 1, dtype=torch.int8)
    mask[0, prompt - 1 :] = 1
    ones = torch.ones_like(tokens)
    return types.SimpleNamespace(sequences=tokens, attention_mask=ones, action_mask=mask, rollout_log_probs=mask.float())


def padded(lengths: list[int], micro_batch: int) -> int:
    return sum(
        max(lengths[i : i + micro_batch]) * len(lengths[i : i + micro_batch]) for i in range(0, len(lengths), micro_batch)
    )


def upstream_tokens(samples: list[Any], micro_batch: int, generator: torch.Generator) -> int:
    """0.9.3: every sample in both passes; DataLoader(shuffle=True) on each rank over the samples it holds."""
    lengths = [s.sequences.shape[1] for s in samples]
    total = padded(lengths, micro_batch)
    share = len(lengths) // RANKS
    for rank in range(RANKS):
        mine = lengths[rank * share : (rank + 1) * share]
        total += padded([mine[i] for i in torch.randperm(share, generator=generator)], micro_batch)
    return total


def planned_tokens(samples: list[Any], advantages: torch.Tensor, micro_batch: int, train_batch: int, seed: int) -> int:
    """The planned step: one pass when it is on-policy, two otherwise."""
    options = PlanOptions(
        group_size=GROUP, train_batch_size=train_batch, micro_batch_size=micro_batch, max_tokens=MAX_TOKENS, ranks=RANKS,
        skip_zero_advantage=True, sort_by_length=True, pad_token_id=0,
    )  # fmt: skip
    _, size = plan_global_step(samples, advantages, options, seed)
    return size.padded * (1 if train_batch == len(samples) else 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=200)
    parser.add_argument("--dead_share", type=float, default=0.5, help="groups without variance")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    rollouts = [make_rollout(generator, args.dead_share) for _ in range(args.rollouts)]
    responses = [float(s.action_mask.sum()) for samples, _ in rollouts for s in samples]
    cut = sum(r == MAX_RESPONSE for r in responses) / len(responses)
    print(f"{args.rollouts} rollouts of {PROMPTS} x {GROUP}: response {statistics.mean(responses):.0f} tokens in the mean, "
          f"{cut:.1%} at the limit, {args.dead_share:.0%} of groups without variance")  # fmt: skip
    print(f"{'micro-batch':>11s} {'optimizer steps':>15s} {'0.9.3':>12s} {'planned':>12s} {'ratio':>7s}")
    for micro_batch in (1, 2, 4):
        for train_batch in (16, 32, 128):
            ours = [planned_tokens(s, a, micro_batch, train_batch, seed) for seed, (s, a) in enumerate(rollouts)]
            theirs = [upstream_tokens(s, micro_batch, generator) for s, _ in rollouts]
            ratio = statistics.median(o / t for o, t in zip(ours, theirs, strict=True))
            print(f"{micro_batch:11d} {PROMPTS * GROUP // train_batch:15d} {statistics.mean(theirs):12,.0f} "
                  f"{statistics.mean(ours):12,.0f} {ratio:7.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
