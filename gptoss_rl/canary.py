"""The canary: prove, before step 1, that a change of the trainer's adapter changes the sampler in the same way.

Names, digests and versions can all agree while the sampler ignores the adapter. So LoRA B is perturbed by
known noise, both sides score the same tokens before and after, and the two changes are compared; then the
adapter is put back and both sides must be where they were.
"""

import argparse
from typing import Any

import ray
import torch

from gptoss_rl.errors import GateError
from gptoss_rl.rollouts import check_parity, difference_statistics

SEED = 20_250_801
START_STD = 0.01
MAX_DOUBLINGS = 8
# The perturbation must stand well above the noise between two implementations of one bf16 model, whose mean
# |logprob difference| is published at 0.08 to 0.14 nats for gpt-oss under eager attention.
WANTED_SHIFT = 0.3
MIN_CORRELATION = 0.7
MAX_RELATIVE_ERROR = 0.6  # mean |trainer shift - sampler shift| over mean |trainer shift|
MAX_RESTORE_ERROR = 0.05  # nats, mean; the restored adapter is the same bits, only batching may differ
MAX_SEQUENCE = 512  # tokens scored per prompt: enough, and affordable at 20B


def run_canary(trainer: Any, args: argparse.Namespace) -> dict[str, float]:
    """Run the canary and the first parity check; returns its figures.

    Raises:
        GateError: the sampler does not follow the trainer, does not return, or was never equal to it.
    """
    sequences, starts = rollout_tokens(trainer, args)
    trainer_before, sampler_before = score_both(trainer, sequences, starts)
    parity = difference_statistics(trainer_before - sampler_before)
    check_parity(parity, args.parity_max_abs_diff, args.parity_max_kl, "before step 1")

    std, trainer_shift = perturb_until_visible(trainer, sequences, starts, trainer_before)
    trainer.broadcast_to_vllm()
    _, sampler_after = score_both(trainer, sequences, starts, sampler_only=True)
    figures = judge_shift(trainer_shift, sampler_after - sampler_before, std)

    run_on_actors(trainer, "restore_lora")
    trainer.broadcast_to_vllm()
    trainer_back, sampler_back = score_both(trainer, sequences, starts)
    judge_restored(trainer_back - trainer_before, sampler_back - sampler_before)
    print(
        f"canary passed: parity {parity['parity/abs_diff_mean']:.4f} nats, shift {figures['shift']:.3f} nats, "
        f"correlation {figures['correlation']:.3f}, relative error {figures['relative_error']:.3f}"
    )
    return {**parity, **figures}


def run_on_actors(trainer: Any, method: str, **kwargs: Any) -> list[Any]:
    return ray.get(trainer.actor_model_group.async_run_method(method_name=method, **kwargs))


def rollout_tokens(trainer: Any, args: argparse.Namespace) -> tuple[list[list[int]], list[int]]:
    """A few greedy rollouts of training prompts: (token ids, index of the first response token)."""
    tokenizer = trainer.tokenizer
    prompts = trainer.prompts_dataloader.dataset.prompts[: args.canary_prompts]
    prompt_ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    engine = trainer.vllm_engines[0]
    responses = ray.get(engine.greedy.remote(prompt_ids, min(args.generate_max_len, MAX_SEQUENCE)))
    sequences = [ids + response for ids, response in zip(prompt_ids, responses, strict=True)]
    return sequences, [len(ids) for ids in prompt_ids]


def score_both(
    trainer: Any, sequences: list[list[int]], starts: list[int], sampler_only: bool = False
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Logprobs of all response tokens, (tokens,), by the trainer and by every engine (which must agree)."""
    samplers = []
    for engine in trainer.vllm_engines:
        scores = ray.get(engine.score.remote(sequences))
        samplers.append(torch.cat([torch.tensor(s[n - 1 :]) for s, n in zip(scores, starts, strict=True)]))
    for index, other in enumerate(samplers[1:], start=1):
        gap = (other - samplers[0]).abs().mean().item()
        if gap > MAX_RESTORE_ERROR:
            raise GateError(
                "canary",
                f"engine {index} scores the same tokens {gap:.3f} nats apart from engine 0: not the same policy",
            )
    if sampler_only:
        return None, samplers[0]
    return score_with_trainer(trainer, sequences, starts), samplers[0]


def score_with_trainer(trainer: Any, sequences: list[list[int]], starts: list[int]) -> torch.Tensor:
    """The trainer's logprobs of the same tokens, through the forward pass that makes old logprobs."""
    # Every data-parallel rank needs work, because ZeRO-3 gathers in step.
    ranks = len(trainer.actor_model_group._actor_handlers)
    padded = sequences + sequences[:1] * (-len(sequences) % ranks)
    batch = {"sequences": [], "attention_mask": [], "action_mask": []}
    for tokens, start in zip(padded, starts + starts[:1] * (len(padded) - len(starts)), strict=True):
        row = torch.tensor([tokens])
        mask = torch.zeros(1, len(tokens) - 1, dtype=torch.long)
        mask[0, start - 1 :] = 1
        batch["sequences"].append(row)
        batch["attention_mask"].append(torch.ones_like(row))
        batch["action_mask"].append(mask)
    refs = trainer.actor_model_group.async_run_method_batch(method_name="forward", **batch)
    rows = [row for batch in ray.get(refs) for row in batch]
    return torch.cat([row[0, start - 1 :] for row, start in zip(rows, starts, strict=False)])


def perturb_until_visible(
    trainer: Any, sequences: list[list[int]], starts: list[int], before: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Double the noise until the trainer's own logprobs move by `WANTED_SHIFT`; returns (std, shift)."""
    std = START_STD
    for _ in range(MAX_DOUBLINGS):
        run_on_actors(trainer, "perturb_lora", std=std, seed=SEED)
        shift = score_with_trainer(trainer, sequences, starts) - before
        if shift.abs().mean() >= WANTED_SHIFT:
            return std, shift
        run_on_actors(trainer, "restore_lora")
        std *= 2
    raise GateError(
        "canary",
        f"perturbing LoRA B with noise of up to {std / 2:g} moved the trainer's own logprobs by only "
        f"{shift.abs().mean():.4f} nats, wanted {WANTED_SHIFT}: the adapter is not part of the trainer's forward pass",
    )


def judge_shift(trainer_shift: torch.Tensor, sampler_shift: torch.Tensor, std: float) -> dict[str, float]:
    """Raises GateError unless the sampler moved as the trainer did."""
    size = trainer_shift.abs().mean().item()
    figures = {
        "shift": size,
        "correlation": torch.corrcoef(torch.stack([trainer_shift, sampler_shift]))[0, 1].nan_to_num().item(),
        "relative_error": (trainer_shift - sampler_shift).abs().mean().item() / size,
    }
    if figures["correlation"] < MIN_CORRELATION or figures["relative_error"] > MAX_RELATIVE_ERROR:
        raise GateError(
            "canary",
            f"noise of {std:g} in LoRA B moved the trainer's logprobs by {size:.3f} nats and the sampler's by "
            f"{sampler_shift.abs().mean():.3f}, correlation {figures['correlation']:.2f} (at least {MIN_CORRELATION}), "
            f"relative error {figures['relative_error']:.2f} (at most {MAX_RELATIVE_ERROR}). Likely causes: the sampler "
            "ignores the adapter, applies it with another scale, or serves another checkpoint.",
        )
    return figures


def judge_restored(trainer_drift: torch.Tensor, sampler_drift: torch.Tensor) -> None:
    """Raises GateError unless restoring the adapter restored both sides."""
    for who, drift in (("trainer", trainer_drift), ("sampler", sampler_drift)):
        if drift.abs().mean().item() > MAX_RESTORE_ERROR:
            raise GateError(
                "canary",
                f"after LoRA B was restored the {who} is still {drift.abs().mean():.4f} nats off (at most "
                f"{MAX_RESTORE_ERROR}): a sync adds to the last one instead of replacing it",
            )
