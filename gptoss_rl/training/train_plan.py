"""What each rank computes in one global step: optimizer steps, micro-batches and what may be left out.

Under the constant normaliser a sample with advantage zero contributes exactly nothing, and samples may be put together
in any way. So samples of groups without variance are dropped, the others are sorted by length, and every rank gets the
same number of micro-batches of similar length, because ZeRO-3 gathers parameters in step. The beginning of one sample of
each dropped group is kept as a probe: an engine that answers with garbage produces exactly the groups that are dropped,
and the parity gate has to see them.
"""

import argparse
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import torch

PROBE_TOKENS = 256  # of a response; garbage differs from the first token on


@dataclass(frozen=True)
class Sample:
    """One sample without padding, as OpenRLHF's experiences of one sample have it; S tokens."""

    sequences: torch.Tensor  # (1, S)
    attention_mask: torch.Tensor  # (1, S)
    action_mask: torch.Tensor  # (1, S - 1)
    rollout_log_probs: torch.Tensor  # (1, S - 1)

    @staticmethod
    def beginning_of(sample: Any, response_tokens: int) -> "Sample":
        """Prompt and first response tokens, at most `response_tokens` of them."""
        end = int(sample.action_mask[0].nonzero()[0]) + response_tokens
        return Sample(
            sequences=sample.sequences[:, : end + 1],
            attention_mask=sample.attention_mask[:, : end + 1],
            action_mask=sample.action_mask[:, :end],
            rollout_log_probs=sample.rollout_log_probs[:, :end],
        )


@dataclass
class MicroBatch:
    """Right-padded samples of one forward pass; B samples, S tokens."""

    sequences: torch.Tensor  # (B, S)
    attention_mask: torch.Tensor  # (B, S)
    action_mask: torch.Tensor  # (B, S - 1), 1 where token t + 1 was sampled
    rollout_log_probs: torch.Tensor  # (B, S - 1)
    advantages: torch.Tensor  # (B,)
    placeholder: bool = False  # nothing to learn: keeps the rank in step with the others


@dataclass
class RankPlan:
    """One rank's work: optimizer steps of micro-batches. Every rank's plan has the same shape."""

    steps: list[list[MicroBatch]] = field(default_factory=list)
    learns: list[bool] = field(default_factory=list)  # by optimizer step: a sample of some rank has an advantage

    def micro_batches(self) -> list[MicroBatch]:
        return [batch for step in self.steps for batch in step]


@dataclass(frozen=True)
class PlanSize:
    """Tokens of one forward pass over a global step, summed over ranks."""

    real: int
    padded: int  # padding and placeholders included
    kept_samples: int  # that are learned from; all of them where nothing is skipped

    @staticmethod
    def of(plans: list[RankPlan], kept_samples: int) -> "PlanSize":
        batches = [batch for plan in plans for batch in plan.micro_batches()]
        real = sum(int(batch.attention_mask.sum()) for batch in batches if not batch.placeholder)
        return PlanSize(real, sum(batch.sequences.numel() for batch in batches), kept_samples)


def group_advantages(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Reward minus group mean (arXiv 2503.20783), (samples,); exactly 0 in a group whose rewards are all equal."""
    rewards_P_G = rewards.float().reshape(-1, group_size)
    advantages = rewards_P_G - rewards_P_G.mean(dim=1, keepdim=True)
    same = (rewards_P_G == rewards_P_G[:, :1]).all(dim=1, keepdim=True)
    return advantages.masked_fill(same, 0.0).reshape(-1)


def collate(samples: list[Any], advantages: list[float], pad_token_id: int) -> MicroBatch:
    """Pad samples on the right to the longest.

    Args:
        samples: `Sample` or OpenRLHF's experiences of one sample each.
    """
    longest = max(sample.sequences.shape[1] for sample in samples)

    def padded(rows: list[torch.Tensor], length: int, value: float) -> torch.Tensor:
        out = rows[0].new_full((len(rows), length), value)
        for target, row in zip(out, rows, strict=True):
            target[: row.shape[0]] = row
        return out

    return MicroBatch(
        sequences=padded([s.sequences[0] for s in samples], longest, pad_token_id),
        attention_mask=padded([s.attention_mask[0] for s in samples], longest, 0),
        action_mask=padded([s.action_mask[0] for s in samples], longest - 1, 0),
        rollout_log_probs=padded([s.rollout_log_probs[0] for s in samples], longest - 1, 0.0),
        advantages=torch.tensor(advantages, dtype=torch.float32),
    )


def placeholder_of(sample: Any, pad_token_id: int) -> MicroBatch:
    """The prompt and the first response token of a sample, with advantage 0: a gradient of exactly zero."""
    return replace(collate([Sample.beginning_of(sample, 1)], [0.0], pad_token_id), placeholder=True)


def probes(samples: list[Any], advantages: torch.Tensor, group_size: int) -> set[int]:
    """Positions of the longest sample of each group without variance; the samples of a group are neighbours."""
    groups = [range(start, start + group_size) for start in range(0, len(samples), group_size)]
    return {
        max(group, key=lambda i: samples[i].sequences.shape[1])
        for group in groups
        if not any(advantages[i] != 0 for i in group)
    }


def deal(lengths: list[int], ranks: int, micro_batch_size: int, max_tokens: int | None) -> list[list[range]]:
    """Cut a list of samples into micro-batches, dealt to ranks; neighbours in the list run at the same time.

    Args:
        lengths: tokens of each sample; in descending order the least padding is left.
        max_tokens: of a micro-batch, padding included; a single sample may exceed it. None: no limit.

    Returns:
        For every round the positions that each rank gets. In a round sizes differ by one at most. At least one round, in
        which ranks may have none.
    """
    rounds, start = [], 0
    longest_from = list(accumulate(reversed(lengths), max))[::-1]
    while start < len(lengths) or not rounds:
        fitting = max_tokens // longest_from[start] if max_tokens and lengths else micro_batch_size
        size = min(max(1, min(micro_batch_size, fitting)) * ranks, len(lengths) - start)
        bounds = [start + size * rank // ranks for rank in range(ranks + 1)]
        rounds.append([range(low, high) for low, high in pairwise(bounds)])
        start += size
    return rounds


@dataclass(frozen=True)
class PlanOptions:
    """How a run deals its samples; the same in every step."""

    group_size: int  # samples a prompt
    train_batch_size: int  # samples an optimizer step
    micro_batch_size: int
    max_tokens: int | None  # of a micro-batch, padding included; see `deal`
    ranks: int
    skip_zero_advantage: bool
    sort_by_length: bool
    pad_token_id: int

    @staticmethod
    def of(args: argparse.Namespace, ranks: int, pad_token_id: int) -> "PlanOptions":
        """What the launch flags ask for."""
        return PlanOptions(
            group_size=args.n_samples_per_prompt,
            train_batch_size=args.train_batch_size,
            micro_batch_size=args.micro_train_batch_size,
            max_tokens=args.micro_batch_max_tokens,
            ranks=ranks,
            skip_zero_advantage=args.zero_variance != "keep",
            sort_by_length=args.micro_batch_order == "length",
            pad_token_id=pad_token_id,
        )


def plan_global_step(
    samples: list[Any], advantages: torch.Tensor, options: PlanOptions, seed: int
) -> tuple[list[RankPlan], PlanSize]:
    """Deal the samples of a rollout batch to optimizer steps, micro-batches and ranks.

    Samples are shuffled before they are dealt to optimizer steps. The number of optimizer steps depends on all samples,
    skipped ones included: one that is left without work is still taken, with a gradient of zero, so that Adam's moments
    and the learning rate are what they would have been.

    Args:
        samples: experiences of one sample each, no padding, the samples of a prompt next to each other.
        advantages: (samples,).
        seed: another one in every global step.

    Raises:
        ValueError: the samples do not divide into optimizer steps; some would never be trained on.
    """
    if len(samples) % options.train_batch_size:
        raise ValueError(f"{len(samples)} samples do not divide into optimizer steps of {options.train_batch_size}")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    plans = [RankPlan() for _ in range(options.ranks)]
    wanted = set(range(len(samples)))
    if options.skip_zero_advantage:
        wanted = probes(samples, advantages, options.group_size) | set(advantages.nonzero().flatten().tolist())
        samples = [s if a != 0 else Sample.beginning_of(s, PROBE_TOKENS) for s, a in zip(samples, advantages, strict=True)]
    for start in range(0, len(order), options.train_batch_size):
        chunk = order[start : start + options.train_batch_size]
        shortest = min(chunk, key=lambda i: samples[i].sequences.shape[1])
        # An optimizer step whose samples are all dropped is measured on the shortest.
        kept = [i for i in chunk if i in wanted] or [shortest]
        if options.sort_by_length:
            kept = sorted(kept, key=lambda i: (-samples[i].sequences.shape[1], i))
        for plan in plans:
            plan.steps.append([])
            plan.learns.append(any(advantages[i] != 0 for i in chunk))
        lengths = [samples[i].sequences.shape[1] for i in kept]
        for pieces in deal(lengths, options.ranks, options.micro_batch_size, options.max_tokens):
            for plan, positions in zip(plans, pieces, strict=True):
                piece = [kept[position] for position in positions]
                plan.steps[-1].append(
                    collate([samples[i] for i in piece], [float(advantages[i]) for i in piece], options.pad_token_id)
                    if piece
                    else placeholder_of(samples[shortest], options.pad_token_id)
                )
    return plans, PlanSize.of(plans, int((advantages != 0).sum()) if options.skip_zero_advantage else len(samples))
