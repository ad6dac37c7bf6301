"""Trainer's model and vLLM on the same tokens: the mean difference of their logprobs, by position.

Two implementations of one model in bf16 differ by rounding, everywhere alike. A difference that grows with the position
is a fault of RoPE or of an attention window. Beside it stand what one more rounding a layer amounts to, and what the
frequencies amount to that ZeRO-3 makes in bf16. Tokens are random, so that neither side is sure of them.

    python benchmarks/parity_by_position.py --pretrain models/gpt-oss-20b-bf16 --vllm_pretrain models/gpt-oss-20b
    python benchmarks/parity_by_position.py --pretrain models/tiny-gptoss --tokens 400        # on a CPU
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from gptoss_rl.training.policy import restore_rotary_frequencies

EDGES = (0, 128, 512, 1000, 2000, 4000)  # positions
ROWS = 512  # of logits at once


def tokens_of(args: argparse.Namespace, vocabulary: int) -> torch.Tensor:
    return torch.randint(3, min(vocabulary, 199_000), (args.sequences, args.tokens), generator=torch.Generator().manual_seed(7))


def rounded_frequencies(rotary: torch.nn.Module) -> torch.Tensor:
    """As ZeRO-3 in bf16 makes them: `torch.arange` returns bf16 while they are computed, and the buffer is cast."""
    plain = torch.arange

    def arange(*args, **kwargs):
        made = plain(*args, **kwargs)
        return made.to(torch.bfloat16) if made.is_floating_point() else made

    torch.arange = arange
    try:
        return rotary.rope_init_fn(rotary.config, rotary.inv_freq.device)[0].bfloat16()
    finally:
        torch.arange = plain


@torch.no_grad()
def score(model: torch.nn.Module, sequences: torch.Tensor) -> torch.Tensor:
    """(sequences, tokens - 1) logprobs."""
    found = []
    for sequence in sequences.to(model.device):
        hidden = model.model(sequence[None], use_cache=False).last_hidden_state[0, :-1]
        parts = zip(hidden.split(ROWS), sequence[1:].split(ROWS), strict=True)
        found.append(torch.cat([torch.log_softmax(model.lm_head(h).float(), -1).gather(1, t[:, None])[:, 0] for h, t in parts]))
    return torch.stack(found).cpu()


def run_trainer(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    from transformers import GptOssForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GptOssForCausalLM.from_pretrained(
        args.pretrain, dtype=torch.bfloat16, attn_implementation="eager", device_map=device
    ).train()  # in eval mode, experts take another path
    sequences, rotary = tokens_of(args, model.config.vocab_size), model.model.rotary_emb
    found = {"right": score(model, sequences)}
    rotary.inv_freq = rounded_frequencies(rotary)
    found["rounded"] = score(model, sequences)
    restore_rotary_frequencies(model)
    generator = torch.Generator(device).manual_seed(1)

    def round_once_more(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        noise = 1 + torch.randn(hidden.shape, generator=generator, device=device) * 2**-9  # half of bf16's last bit
        hidden = (hidden.float() * noise).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    for layer in model.model.layers:
        layer.register_forward_hook(round_once_more)
    return found | {"noise": score(model, sequences)}


def run_sampler(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams

    path = args.vllm_pretrain or args.pretrain
    sequences = tokens_of(args, AutoConfig.from_pretrained(path).vocab_size)
    engine = LLM(str(path), enforce_eager=True, max_model_len=args.tokens + 8, gpu_memory_utilization=args.utilization,
                 tensor_parallel_size=args.tp, max_num_seqs=8, dtype="bfloat16", max_logprobs=1, seed=0)  # fmt: skip
    prompts = [{"prompt_token_ids": row.tolist()} for row in sequences]
    outputs = engine.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0))
    rows = [
        [entry[token].logprob for token, entry in zip(o.prompt_token_ids[1:], o.prompt_logprobs[1:], strict=True)]
        for o in outputs
    ]
    return {"sampler": torch.tensor(rows)}


def table(found: dict[str, torch.Tensor]) -> str:
    tokens = found["right"].shape[1]
    parts = [(a, b) for a, b in zip(EDGES, [*EDGES[1:], tokens], strict=True) if a < tokens]
    lines = [f"{'mean |logprob difference|':44s}{'all':>9s}" + "".join(f"{f'{a}-{min(b, tokens)}':>12s}" for a, b in parts)]
    for name, a, b in (
        ("one more bf16 rounding a layer", "noise", "right"),
        ("ZeRO-3's frequencies in bf16", "rounded", "right"),
        ("vLLM against right frequencies", "sampler", "right"),
        ("vLLM against ZeRO-3's frequencies", "sampler", "rounded"),
    ):
        difference = (found[a] - found[b]).abs()
        columns = "".join(f"{difference[:, start:end].mean():12.4f}" for start, end in parts)
        lines.append(f"{name:44s}{difference.mean():9.4f}{columns}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrain", type=Path, required=True, help="BF16 directory, the trainer's")
    parser.add_argument("--vllm_pretrain", type=Path, default=None, help="the engines' directory; default: --pretrain")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1500, help="of each sequence")
    parser.add_argument("--tp", type=int, default=1, help="shards of the engine")
    parser.add_argument("--utilization", type=float, default=0.6, help="of a card, for the engine")
    parser.add_argument("--side", choices=("trainer", "sampler"), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        torch.save({"trainer": run_trainer, "sampler": run_sampler}[args.side](args), args.target)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for side in ("trainer", "sampler"):  # one after the other: they may share a card
            target = Path(folder, side)
            subprocess.run([sys.executable, *sys.argv, "--side", side, "--target", str(target)], check=True)
            found |= torch.load(target)
    print(table(found))


if __name__ == "__main__":
    main()
