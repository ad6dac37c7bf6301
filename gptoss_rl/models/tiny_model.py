"""The tiny gpt-oss: its configuration, and the supervised warm-up that gives reinforcement learning a start.

Every part of the real model is there: attention sinks, alternating sliding and full attention, routed
experts, YaRN, biases. The warm-up shows each problem with both habits of `tiny_task` and stops at the first
check where greedy decoding is inside a band and the working habit is mastered, so another seed, or a machine
that rounds differently, ends in the same state after more or fewer steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

from gptoss_rl.models.tiny_task import Sum, WarmupError, guessing_response, working_response
from gptoss_rl.prompts import DEFAULT_REASONING_EFFORT, REASONING_EFFORTS, render_prompt

# As in openai/gpt-oss-20b's config.json: factor 32 over 4,096 positions.
ROPE_THETA = 150_000
ROPE_SCALING = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
MAX_POSITIONS = 131_072

# A third of the samples work, so each group of 8 shows both habits; greedy decoding still guesses, clearly.
WORKING_SHARE = 0.35
# The guesser's ceiling is tiny_task.SHARE_WITHOUT_CARRY (40 %); the warm-up ends near it.
GREEDY_BAND = (0.34, 0.50)
WORKING_MASTERED = 0.85
BATCH_PROBLEMS = 48
LEARNING_RATE = 3e-3
RATE_WARMUP_STEPS = 50
INITIALIZER_RANGE = 0.06  # the usual 0.02 leaves a model this narrow on its first plateau three times as long
CHECK_EVERY = 25
FIRST_CHECK = 200  # no seed was in the band before
MAX_RESPONSE_TOKENS = 24
IGNORED = -100


@dataclass(frozen=True)
class Sizes:
    """Dimensions of the tiny model."""

    hidden_size: int = 96
    intermediate_size: int = 128
    layers: int = 4
    experts: int = 4
    experts_per_token: int = 2
    query_heads: int = 6
    key_value_heads: int = 2
    head_dim: int = 32
    sliding_window: int = 16


def tiny_config(sizes: Sizes, tokenizer: PreTrainedTokenizerFast) -> GptOssConfig:
    """Configuration with the real model's features at the given sizes."""
    config = GptOssConfig(
        architectures=["GptOssForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.query_heads,
        num_key_value_heads=sizes.key_value_heads,
        head_dim=sizes.head_dim,
        num_local_experts=sizes.experts,
        num_experts_per_tok=sizes.experts_per_token,
        experts_per_token=sizes.experts_per_token,  # the real config.json spells it both ways
        sliding_window=sizes.sliding_window,
        layer_types=["full_attention" if i % 2 else "sliding_attention" for i in range(sizes.layers)],
        rope_theta=ROPE_THETA,
        rope_scaling=dict(ROPE_SCALING),
        max_position_embeddings=MAX_POSITIONS,
        initial_context_length=ROPE_SCALING["original_max_position_embeddings"],
        initializer_range=INITIALIZER_RANGE,
        attention_bias=True,
        attention_dropout=0.0,
        swiglu_limit=7.0,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = "eager"  # the only kernel that keeps the sinks on a CPU
    return config


def build_model(sizes: Sizes, tokenizer: PreTrainedTokenizerFast, seed: int) -> GptOssForCausalLM:
    """An untrained fp32 model, its weights drawn from `seed`."""
    torch.manual_seed(seed)
    model = GptOssForCausalLM(tiny_config(sizes, tokenizer))
    call = tokenizer.convert_tokens_to_ids("<|call|>")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id, call]
    return model


class WarmupBatches:
    """Rows that hold a prompt once and both habits' responses after it, and the loss over them.

    A row is [prompt P | working response W | guessing response G]. A mask lets each response see the prompt
    and itself, and both count their positions on from the prompt, so one pass over P + W + G tokens computes
    what two passes over P + W and P + G would, and the habits' shares are exact weights instead of draws.
    """

    def __init__(self, problems: Sequence[Sum], tokenizer: PreTrainedTokenizerFast, window: int):
        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False).input_ids

        pairs = [(item, effort) for item in problems for effort in REASONING_EFFORTS]
        prompts = torch.tensor([encode(render_prompt(item.problem, effort)) for item, effort in pairs])
        working = _pad_right([encode(working_response(item)) for item, _ in pairs])
        guessing = _pad_right([encode(guessing_response(item)) for item, _ in pairs])
        self.rows = torch.cat([prompts, working, guessing], dim=1)  # (N, P + W + G)
        self.pad_id = tokenizer.pad_token_id
        P, W, G = prompts.shape[1], working.shape[1], guessing.shape[1]
        self.prompt_length = P
        self.positions = torch.tensor([*range(P + W), *range(P, P + G)])
        branch = torch.tensor([0] * P + [1] * W + [2] * G)
        self.weights = torch.tensor([WORKING_SHARE] * W + [1 - WORKING_SHARE] * G)
        # The position whose output predicts each response token: the first is predicted by the prompt's last.
        self.predictors = torch.tensor([*range(P - 1, P + W - 1), P - 1, *range(P + W, P + W + G - 1)])
        distance = self.positions[:, None] - self.positions[None, :]
        full = (distance >= 0) & ((branch[None, :] == 0) | (branch[None, :] == branch[:, None]))
        self.masks = {
            "full_attention": _additive(full),
            "sliding_attention": _additive(full & (distance < window)),
        }

    def loss(self, model: GptOssForCausalLM, indices: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the response tokens of rows `indices` (B,), averaged with the habits' weights."""
        rows = self.rows[indices]
        hidden = model.model(
            input_ids=rows.masked_fill(rows == IGNORED, self.pad_id),
            attention_mask=self.masks,
            position_ids=self.positions.expand(len(rows), -1),
            use_cache=False,
        ).last_hidden_state
        targets = rows[:, self.prompt_length :]
        kept = targets != IGNORED
        logits = model.lm_head(hidden[:, self.predictors][kept])
        losses = torch.nn.functional.cross_entropy(logits, targets[kept], reduction="none")
        weights = self.weights.expand_as(targets)[kept]
        return (losses * weights).sum() / weights.sum()


def warm_up(
    model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    warmup: Sequence[Sum],
    validation: Sequence[Sum],
    seed: int,
    max_steps: int,
) -> dict[str, float]:
    """Train in place until greedy pass@1 on `validation` is in `GREEDY_BAND` and working is mastered.

    Returns:
        steps, greedy (pass@1), working (pass@1 when the analysis channel is opened for the model).

    Raises:
        WarmupError: `max_steps` went by first.
    """
    batches = WarmupBatches(warmup, tokenizer, model.config.sliding_window)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, max_steps))
    generator = torch.Generator().manual_seed(seed)
    greedy = working = float("nan")
    model.train()
    with tqdm(total=max_steps, desc="warm-up", unit="step") as bar:
        for step in range(1, max_steps + 1):
            indices = torch.randint(len(batches.rows), (BATCH_PROBLEMS,), generator=generator)
            loss = batches.loss(model, indices)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.update()
            if step < FIRST_CHECK or step % CHECK_EVERY:
                continue
            greedy = pass_at_1(model, tokenizer, validation)
            working = pass_at_1(model, tokenizer, validation, opening="<|channel|>analysis<|message|>")
            bar.set_postfix(loss=f"{loss.item():.3f}", greedy=f"{greedy:.2f}", working=f"{working:.2f}")
            if GREEDY_BAND[0] <= greedy <= GREEDY_BAND[1] and working >= WORKING_MASTERED:
                return {"steps": step, "greedy": greedy, "working": working}
    raise WarmupError(
        f"after {max_steps} warm-up steps greedy pass@1 is {greedy:.2f} (band {GREEDY_BAND}) and working is "
        f"right in {working:.2f} (wanted {WORKING_MASTERED}); give more --max_warmup_steps or another --seed"
    )


@torch.no_grad()
def pass_at_1(
    model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Sum],
    *,
    opening: str = "",
    reasoning_effort: str = DEFAULT_REASONING_EFFORT,
) -> float:
    """Share of problems that greedy decoding answers right; `opening` is put in the model's mouth."""
    texts = [render_prompt(item.problem, reasoning_effort) + opening for item in problems]
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    was_training = model.training
    model.eval()
    output = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=MAX_RESPONSE_TOKENS,
        do_sample=False,
    )
    model.train(was_training)
    responses = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :])
    # The tiny model writes one form of answer only, so the ending is compared and no grader is needed.
    right = [
        response.split("<|return|>")[0].endswith(f"final<|message|>\\boxed{{{item.answer}}}")
        for response, item in zip(responses, problems, strict=True)
    ]
    return sum(right) / len(right)


def _rate_factor(step: int, max_steps: int) -> float:
    """Linear rise over `RATE_WARMUP_STEPS`, then a linear fall that would reach zero after `max_steps`."""
    return min((step + 1) / RATE_WARMUP_STEPS, 1 - step / max_steps)


def _pad_right(sequences: list[list[int]]) -> torch.Tensor:
    length = max(map(len, sequences))
    return torch.tensor([tokens + [IGNORED] * (length - len(tokens)) for tokens in sequences])


def _additive(allowed: torch.Tensor) -> torch.Tensor:
    """Boolean (L, L) to the additive (1, 1, L, L) mask of eager attention."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
