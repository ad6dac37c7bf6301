"""A random gpt-oss of any size in the released layout, MXFP4 experts included, and its exact BF16 twin.

As transformers initialises it, a random model of many layers is chaotic: one expert chosen differently under rounding turns
the rest over, and trainer and sampler end nats apart though both are right. Here the residual stream is the embedding's
(standard deviation 1) and a layer adds little to it (`o_proj` and `down_proj` a sixteenth), as in a trained model, so that
rounding stays rounding and a fault shows.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GptOssConfig

from gptoss_rl.models.folder import INDEX, check_place, new_folder
from gptoss_rl.models.mxfp4 import BLOCK, BLOCKS, NOT_CONVERTED, SCALES, dequantize, quantize
from gptoss_rl.models.tiny_tokenizer import build_tokenizer
from gptoss_rl.run_files import write_json_atomically

MARK = "random_meta.json"
STD = 0.02  # of matrices of the 20B model's width; narrower ones are wider spread, so that layers do as much
WIDTH = 2880
QUIET = 16  # what a layer adds to the residual stream is divided by this
ROUTER = 4  # times as widely spread, so that the chosen experts stand out
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096}  # fmt: skip
EXPERTS_AT_ONCE = 4  # quantised together: a few GB of scratch on the device at 20B's size
WRITERS = 4  # threads that write shards; copying to the file system is what takes the time


@dataclass(frozen=True)
class Shape:
    """Dimensions; the defaults are gpt-oss-20b's (its config.json)."""

    layers: int = 24
    hidden: int = 2880
    experts: int = 32
    intermediate: int = 2880
    heads: int = 64
    kv_heads: int = 8
    head_dim: int = 64
    vocabulary: int = 201_088
    experts_per_token: int = 4

    def config(self) -> GptOssConfig:
        return GptOssConfig(
            num_hidden_layers=self.layers, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, head_dim=self.head_dim,
            num_local_experts=self.experts, num_experts_per_tok=self.experts_per_token, vocab_size=self.vocabulary,
            sliding_window=128, max_position_embeddings=131_072, rope_scaling=YARN, dtype=torch.bfloat16,
            layer_types=["full_attention" if i % 2 else "sliding_attention" for i in range(self.layers)],
            eos_token_id=min(200_002, self.vocabulary - 1), pad_token_id=min(199_999, self.vocabulary - 2),
        )  # fmt: skip


class RandomWeights:
    """Tensors in the order in which they are asked for: another order, size, device type or seed makes another model."""

    def __init__(self, shape: Shape, seed: int, device: str):
        self.shape, self.device = shape, device
        self.std = STD * (WIDTH / shape.hidden) ** 0.5
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *size: int, std: float | None = None, mean: float = 0.0) -> torch.Tensor:
        drawn = torch.randn(*size, generator=self.generator, device=self.device)
        return (drawn * (self.std if std is None else std) + mean).to(torch.bfloat16)

    def ends(self) -> dict[str, torch.Tensor]:
        """Embedding, last norm and head."""
        s = self.shape
        return {
            "model.embed_tokens.weight": self.normal(s.vocabulary, s.hidden, std=1.0),
            "model.norm.weight": self.normal(s.hidden, std=0.1, mean=1.0),
            "lm_head.weight": self.normal(s.vocabulary, s.hidden),
        }

    def attention(self) -> dict[str, torch.Tensor]:
        """Everything of a layer but its experts; names without the layer."""
        s = self.shape
        sizes = {"q_proj": s.heads * s.head_dim, "k_proj": s.kv_heads * s.head_dim, "v_proj": s.kv_heads * s.head_dim}
        found = {f"{name}.weight": self.normal(s.hidden, std=0.1, mean=1.0)
                 for name in ("input_layernorm", "post_attention_layernorm")}  # fmt: skip
        for name, rows in sizes.items():
            found[f"self_attn.{name}.weight"] = self.normal(rows, s.hidden)
            found[f"self_attn.{name}.bias"] = self.normal(rows)
        found["self_attn.o_proj.weight"] = self.normal(s.hidden, s.heads * s.head_dim, std=self.std / QUIET)
        found["self_attn.o_proj.bias"] = self.normal(s.hidden, std=self.std / QUIET)
        found["self_attn.sinks"] = self.normal(s.heads, std=1.0, mean=1.0)
        found["mlp.router.weight"] = self.normal(s.experts, s.hidden, std=ROUTER * self.std)
        found["mlp.router.bias"] = self.normal(s.experts)
        found["mlp.experts.gate_up_proj_bias"] = self.normal(s.experts, 2 * s.intermediate)
        found["mlp.experts.down_proj_bias"] = self.normal(s.experts, s.hidden, std=self.std / QUIET)
        return found

    def experts(self, inner: int, outer: int, std: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Blocks and scales of all experts' (inner, outer) matrices."""
        parts = [
            quantize(self.normal(min(EXPERTS_AT_ONCE, self.shape.experts - first), inner, outer, std=std))
            for first in range(0, self.shape.experts, EXPERTS_AT_ONCE)
        ]
        return torch.cat([blocks for blocks, _ in parts]), torch.cat([scales for _, scales in parts])

    def shards(self) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        """What both checkpoints store alike, and blocks and scales; the ends first, then layer by layer."""
        s = self.shape
        yield self.ends(), {}
        for layer in range(s.layers):
            prefix = f"model.layers.{layer}."
            plain = {prefix + name: tensor for name, tensor in self.attention().items()}
            packed = {}
            for name, inner, outer, std in (
                ("gate_up_proj", s.hidden, 2 * s.intermediate, self.std),
                ("down_proj", s.intermediate, s.hidden, self.std / QUIET),
            ):
                stem = f"{prefix}mlp.experts.{name}"
                packed[stem + BLOCKS], packed[stem + SCALES] = self.experts(inner, outer, std)
            yield plain, packed


class ShardWriter:
    """Writes shards of a checkpoint beside the thread that makes them; `finish` waits, raises what failed, writes the index."""

    def __init__(self, folder: Path, count: int, pool: ThreadPoolExecutor):
        self.folder, self.count, self.pool = folder, count, pool
        self.weight_map: dict[str, str] = {}
        self.size = 0
        self.writing: list[Future] = []

    def write(self, tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{len(self.writing) + 1:05d}-of-{self.count:05d}.safetensors"
        held = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        self.weight_map |= dict.fromkeys(held, name)
        self.size += sum(tensor.nbytes for tensor in held.values())
        if len(self.writing) >= 2 * WRITERS:  # of those before, so that memory holds a few shards only
            self.writing[-2 * WRITERS].result()
        self.writing.append(self.pool.submit(save_file, held, self.folder / name, {"format": "pt"}))

    def finish(self) -> None:
        for future in self.writing:
            future.result()
        write_json_atomically(self.folder / INDEX, {"metadata": {"total_size": self.size}, "weight_map": self.weight_map})


def packed_bytes(shape: Shape) -> int:
    """Bytes of the MXFP4 checkpoint's experts."""
    values = shape.layers * shape.experts * 3 * shape.intermediate * shape.hidden
    return values // 2 + values // BLOCK


def plain_bytes(shape: Shape) -> int:
    """Bytes of what both checkpoints store in BF16, biases and norms left out."""
    width = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return 2 * shape.hidden * (2 * shape.vocabulary + shape.layers * (width + shape.experts))


def save_random_checkpoint(
    mxfp4: Path, bf16: Path | None, shape: Shape, *, seed: int = 0, device: str = "cpu", overwrite: bool = False,
    advance: Callable[[int], Any] = lambda _: None,
) -> None:  # fmt: skip
    """Write the MXFP4 checkpoint and, unless None, its BF16 twin; each appears in one rename when all is written.

    Args:
        device: where tensors are drawn and quantised; CPU and CUDA draw other numbers from one seed.
        advance: called with 1 for each shard of each.

    Raises:
        CheckpointError: an output exists, or does not fit on its disk.
        ValueError: hidden or intermediate size is no multiple of 32.
    """
    if shape.hidden % BLOCK or shape.intermediate % BLOCK:
        raise ValueError(f"hidden ({shape.hidden}) and intermediate size ({shape.intermediate}) must be multiples of {BLOCK}")
    twin_bytes = plain_bytes(shape) + 6 * shape.layers * shape.experts * shape.intermediate * shape.hidden
    for output, needed in ((mxfp4, plain_bytes(shape) + packed_bytes(shape)), (bf16, twin_bytes)):
        if output is not None:
            check_place(output, [], needed, overwrite=overwrite, mark=MARK)
    weights, count = RandomWeights(shape, seed, device), shape.layers + 1
    with ThreadPoolExecutor(WRITERS) as pool, new_folder(mxfp4) as first:
        packed_writer = ShardWriter(first, count, pool)
        if bf16 is None:
            _write(weights, packed_writer, None, advance)
        else:
            with new_folder(bf16) as second:
                _write(weights, packed_writer, ShardWriter(second, count, pool), advance)
                _describe(second, shape, seed, quantized=False)
        _describe(first, shape, seed, quantized=True)


def _write(weights: RandomWeights, packed: ShardWriter, twin: ShardWriter | None, advance: Callable[[int], Any]) -> None:
    for plain, blocks in weights.shards():
        packed.write(plain | blocks)
        advance(1)
        if twin is not None:
            stems = [name.removesuffix(BLOCKS) for name in blocks if name.endswith(BLOCKS)]
            twin.write(plain | {stem: dequantize(blocks[stem + BLOCKS], blocks[stem + SCALES]) for stem in stems})
            advance(1)
    packed.finish()
    if twin is not None:
        twin.finish()


def _describe(folder: Path, shape: Shape, seed: int, *, quantized: bool) -> None:
    """Config, tokenizer, and what it was made of."""
    config = shape.config()
    if quantized:
        config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": NOT_CONVERTED}
    config.architectures = ["GptOssForCausalLM"]
    config.save_pretrained(folder)
    # Its ids are the first few hundred; the others are never text.
    build_tokenizer(config.max_position_embeddings).save_pretrained(folder)
    write_json_atomically(folder / MARK, {"shape": vars(shape), "seed": seed})
