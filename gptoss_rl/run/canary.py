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
from gptoss_rl.flags import ParityLimits
from gptoss_rl.training.parity import check_parity, difference_statistics

SEED = 20_250_801
START_STD = 0.01
MAX_DOUBLINGS = 8
# The perturbation must stand well above the noise between two implementations of one bf16 model, whose mean
# |logprob difference| is published at 0.08 to 0.14 nats for gpt-oss under eager attention.
WANTED_SHIFT = 0.3
MIN_CORRELATION = 0.7
MAX_RELATIVE_ERROR = 0.6  # mean |trainer shift - sampler shift| over mean |trainer shift|
# Mean |sampler shift| over mean |trainer shift|. A regression slope would fall with noise, this does not: on small random
# models equal adapters gave 0.97 to 1.01 down to a correlation of 0.88, one at half its scale at most 0.73. At 1.5 times
# it was above 1.4 on greedy responses; on arbitrary tokens the model's answer to noise saturates, and it fell to 1.13.
SHIFT_RATIO = (0.8, 1.25)
MAX_RESTORE_ERROR = 0.05  # nats, mean; the restored adapter is the same bits, only batching may differ
MAX_SEQUENCE = 512  # tokens scored per prompt: enough, and affordable at 20B


def run_canary(trainer: Any, args: argparse.Namespace, limits: ParityLimits) -> dict[str, float]:
    """Run the canary and the first parity check; returns its figures.

    Raises:
        GateError: the sampler does not follow the trainer, does not return, or was never equal to it.
    """
    sequences, starts = rollout_tokens(trainer, args)
    response = response_positions(sequences, starts)
    trainer_before, sampler_before = score_with_trainer(trainer, sequences), score_with_engines(trainer, sequences)
    parity = start_parity(trainer_before - sampler_before, response, scored_positions(sequences))
    check_parity(parity, limits.parity_max_abs_diff, limits.parity_max_kl, "before step 1")
    check_prompt_parity(parity["prompt_abs_diff_mean"], limits.parity_max_prompt_abs_diff)

    std, trainer_shift = perturb_until_visible(trainer, sequences, response, trainer_before)
    trainer.broadcast_to_vllm()
    sampler_shift = score_with_engines(trainer, sequences) - sampler_before
    figures = judge_shift(trainer_shift[response], sampler_shift[response], std)

    run_on_actors(trainer, "restore_lora")
    trainer.broadcast_to_vllm()
    trainer_drift = score_with_trainer(trainer, sequences) - trainer_before
    judge_restored(trainer_drift, score_with_engines(trainer, sequences) - sampler_before)
    print(
        f"canary passed: parity {parity['parity/abs_diff_mean']:.4f} nats on responses, {parity['prompt_abs_diff_mean']:.4f} "
        f"on prompts; shift {figures['shift']:.3f} nats, the sampler's {figures['shift_ratio']:.3f} times that, correlation "
        f"{figures['correlation']:.3f}, relative error {figures['relative_error']:.3f}"
    )
    return {**parity, **figures}


def response_positions(sequences: list[list[int]], starts: list[int]) -> torch.Tensor:
    """(tokens,) bool over all scored tokens (each sequence's from its second on): which the sampler drew."""
    rows = [torch.arange(1, len(tokens)) >= start for tokens, start in zip(sequences, starts, strict=True)]
    return torch.cat(rows)


def scored_positions(sequences: list[list[int]]) -> torch.Tensor:
    """(tokens,) position of every scored token in its sequence."""
    return torch.cat([torch.arange(1, len(tokens)) for tokens in sequences])


def start_parity(differences: torch.Tensor, response: torch.Tensor, positions: torch.Tensor) -> dict[str, float]:
    """Parity figures before step 1; all (tokens,).

    Prompt tokens are looked at apart. Greedy responses are what the model is sure of, and there even attention without
    sinks is hardly seen: on the warmed-up tiny model it moves response tokens by 0.001 nats, less than bf16 does, and
    prompt tokens by 0.34, fifteen times what bf16 does (rl_grpo_research.md, 2026-11-23). The KL estimate needs tokens
    drawn from the sampler, so it has no counterpart on prompts.
    """
    prompt = differences[~response].abs().mean().item()
    return {**difference_statistics(differences[response], positions[response]), "prompt_abs_diff_mean": prompt}


def check_prompt_parity(difference: float, limit: float) -> None:
    """Raises GateError when trainer and sampler differ on prompt tokens by more than `limit` nats in the mean; 0 is off."""
    if limit > 0 and not difference <= limit:
        raise GateError(
            "parity",
            f"before step 1: trainer and sampler differ by {difference:.4g} nats in the mean on prompt tokens, allowed "
            f"{limit:g} (--parity_max_prompt_abs_diff). Likely causes: an attention kernel without sinks, or different "
            "checkpoints in --pretrain and --vllm_pretrain.",
        )


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


def score_with_engines(trainer: Any, sequences: list[list[int]]) -> torch.Tensor:
    """Logprobs of every token but each sequence's first, (tokens,), by the first engine; the others must agree."""
    samplers = []
    for engine in trainer.vllm_engines:
        samplers.append(torch.cat([torch.tensor(scores) for scores in ray.get(engine.score.remote(sequences))]))
    for index, other in enumerate(samplers[1:], start=1):
        gap = (other - samplers[0]).abs().mean().item()
        if not gap <= MAX_RESTORE_ERROR:
            raise GateError(
                "canary",
                f"engine {index} scores the same tokens {gap:.3f} nats apart from engine 0: not the same policy",
            )
    return samplers[0]


def score_with_trainer(trainer: Any, sequences: list[list[int]]) -> torch.Tensor:
    """The trainer's logprobs of the same tokens, through the forward pass that makes old logprobs, at temperature 1.

    Prompts are scored by vLLM from raw logits, whatever `--temperature` is, so the trainer must not divide its own either.
    """
    # Every data-parallel rank needs work, because ZeRO-3 gathers in step.
    ranks = len(trainer.actor_model_group._actor_handlers)
    padded = sequences + sequences[:1] * (-len(sequences) % ranks)
    batch = {"sequences": [], "attention_mask": [], "action_mask": []}
    for tokens in padded:
        row = torch.tensor([tokens])
        batch["sequences"].append(row)
        batch["attention_mask"].append(torch.ones_like(row))
        batch["action_mask"].append(torch.ones_like(row)[:, 1:])
    group = trainer.actor_model_group
    usual = ray.get(group.async_run_method("__ray_call__", set_temperature, 1.0))[0]
    rows = [row for batch in ray.get(group.async_run_method_batch(method_name="forward", **batch)) for row in batch]
    ray.get(group.async_run_method("__ray_call__", set_temperature, usual))
    return torch.cat([row[0] for row in rows[: len(sequences)]])


def set_temperature(policy: Any, temperature: float) -> float:
    """Runs in the policy actor: divide its logits by `temperature` from now on; what they were divided by before."""
    before, policy.actor.temperature = policy.actor.temperature, temperature
    return before


def perturb_until_visible(
    trainer: Any, sequences: list[list[int]], response: torch.Tensor, before: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Double the noise until the trainer's logprobs of the responses move by `WANTED_SHIFT`; (std, shift of all tokens)."""
    std = START_STD
    for _ in range(MAX_DOUBLINGS):
        run_on_actors(trainer, "perturb_lora", std=std, seed=SEED)
        shift = score_with_trainer(trainer, sequences) - before
        if shift[response].abs().mean() >= WANTED_SHIFT:
            return std, shift
        run_on_actors(trainer, "restore_lora")
        std *= 2
    raise GateError(
        "canary",
        f"perturbing LoRA B with noise of up to {std / 2:g} moved the trainer's own logprobs by only "
        f"{shift[response].abs().mean():.4f} nats, wanted {WANTED_SHIFT}: the adapter is not in the forward pass",
    )


def shift_figures(trainer_shift: torch.Tensor, sampler_shift: torch.Tensor) -> dict[str, float]:
    """How alike two changes of the same tokens' logprobs are; both (tokens,)."""
    size = trainer_shift.abs().mean().item()
    return {
        "shift": size,
        "correlation": torch.corrcoef(torch.stack([trainer_shift, sampler_shift]))[0, 1].nan_to_num().item(),
        "relative_error": (trainer_shift - sampler_shift).abs().mean().item() / size,
        "shift_ratio": sampler_shift.abs().mean().item() / size,
    }


def judge_shift(trainer_shift: torch.Tensor, sampler_shift: torch.Tensor, std: float) -> dict[str, float]:
    """Raises GateError unless the sampler moved as the trainer did."""
    figures = shift_figures(trainer_shift, sampler_shift)
    size, sampler_size = figures["shift"], figures["shift"] * figures["shift_ratio"]
    low, high = SHIFT_RATIO
    alike = figures["correlation"] >= MIN_CORRELATION and figures["relative_error"] <= MAX_RELATIVE_ERROR
    if not (alike and low <= figures["shift_ratio"] <= high):
        raise GateError(
            "canary",
            f"noise of {std:g} in LoRA B moved the trainer's logprobs by {size:.3f} nats and the sampler's by "
            f"{sampler_size:.3f}, {figures['shift_ratio']:.2f} times as far ({low:g} to {high:g}), correlation "
            f"{figures['correlation']:.2f} (at least {MIN_CORRELATION}), relative error {figures['relative_error']:.2f} (at "
            f"most {MAX_RELATIVE_ERROR}). Likely causes: the sampler ignores the adapter, applies it with another scale, or "
            "serves another checkpoint.",
        )
    return figures


def judge_restored(trainer_drift: torch.Tensor, sampler_drift: torch.Tensor) -> None:
    """Raises GateError unless restoring the adapter restored both sides."""
    for who, drift in (("trainer", trainer_drift), ("sampler", sampler_drift)):
        if not drift.abs().mean().item() <= MAX_RESTORE_ERROR:
            raise GateError(
                "canary",
                f"after LoRA B was restored the {who} is still {drift.abs().mean():.4f} nats off (at most "
                f"{MAX_RESTORE_ERROR}): a sync adds to the last one instead of replacing it",
            )
