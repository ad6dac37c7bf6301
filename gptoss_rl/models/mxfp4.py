"""MXFP4, in which gpt-oss's experts are released, and BF16, in which they are trained: one model in two forms.

A block of 32 values shares one power of two, and each value is one of sixteen of four bits, E2M1 (OCP Microscaling Formats
v1.0, sections 5.2 and 6.3). Every such product below 2^128 is
exactly a BF16 number, so nothing is lost on the way from MXFP4 to BF16. A
checkpoint stores an expert matrix transposed: (experts, in, out) in BF16, and in MXFP4 `*_blocks` of shape (experts, out,
in / 32, 16), uint8, the earlier value of a pair in the low half of a byte, beside `*_scales` of shape (experts, out, in / 32),
uint8, exponents plus 127.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gptoss_rl.data.files import sha256
from gptoss_rl.models.folder import INDEX, CheckpointError, Weights, check_place, companions, new_folder
from gptoss_rl.run_files import write_json_atomically

BLOCKS, SCALES, BLOCK = "_blocks", "_scales", 32
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of E2M1, without the sign
LARGEST_EXPONENT = 2  # of E2M1: 6 = 1.5 x 2^2
SHARD_BYTES = 4 << 30
META = "mxfp4_meta.json"
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
NOT_CONVERTED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


def dequantize(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(experts, out, in / 32, 16) and (experts, out, in / 32), both uint8, to (experts, in, out) in BF16, exactly.

    Raises:
        CheckpointError: the shapes do not belong together, or a scale is the format's NaN (255).
    """
    if blocks.shape[:-1] != scales.shape or blocks.shape[-1] != BLOCK // 2:
        raise CheckpointError(f"blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)} do not belong together")
    if (scales == 255).any():
        raise CheckpointError("a block's scale is 255, not a number")
    table = torch.tensor([*VALUES, *(-value for value in VALUES)], dtype=torch.bfloat16, device=blocks.device)
    experts, rows, groups, _ = blocks.shape
    result = torch.empty(experts, groups * BLOCK, rows, dtype=torch.bfloat16, device=blocks.device)
    for number in range(experts):  # an expert at a time: indices take eight bytes a value
        pairs = torch.stack((blocks[number] & 15, blocks[number] >> 4), dim=-1).reshape(rows, groups, BLOCK)
        values = torch.ldexp(table[pairs.int()], scales[number].int().unsqueeze(-1) - 127)
        result[number] = values.reshape(rows, groups * BLOCK).T
    if not torch.isfinite(result).all():
        raise CheckpointError("a block's scale is so large that BF16 cannot hold its values: the checkpoint is damaged")
    return result


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts, in, out) to blocks and scales as above, each value to the nearest; for tests and made-up checkpoints.

    The scale is the format's own rule: the exponent of the block's largest value, less 2.

    Raises:
        CheckpointError: `in` is no multiple of 32, or a value is not finite.
    """
    experts, inner, outer = weight.shape
    if inner % BLOCK or not torch.isfinite(weight).all():
        raise CheckpointError(f"{tuple(weight.shape)} cannot be quantized: not whole blocks of {BLOCK}, or not finite")
    groups = weight.float().transpose(1, 2).reshape(experts, outer, inner // BLOCK, BLOCK)
    exponent = torch.frexp(groups.abs().amax(dim=-1)).exponent - 1 - LARGEST_EXPONENT
    exponent = exponent.clamp(-127, 127)
    scaled = torch.ldexp(groups, -exponent.unsqueeze(-1)).clamp(-VALUES[-1], VALUES[-1])
    middles = torch.tensor([(a + b) / 2 for a, b in pairwise(VALUES)], device=weight.device)
    codes = torch.bucketize(scaled.abs().contiguous(), middles, out_int32=True).to(torch.uint8) | (
        torch.signbit(scaled).to(torch.uint8) << 3
    )
    return codes[..., 0::2] | (codes[..., 1::2] << 4), (exponent + 127).to(torch.uint8)


def dequantized_tensors(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the BF16 checkpoint, shard by shard of the MXFP4 one.

    Raises:
        CheckpointError: nothing in it is MXFP4, or blocks and scales do not belong together.
    """
    stems = [{name.removesuffix(end) for name in weights.files if name.endswith(end)} for end in (BLOCKS, SCALES)]
    if stems[0] != stems[1]:
        raise CheckpointError(f"{weights.folder}: {min(stems[0] ^ stems[1])} has not both *{BLOCKS} and *{SCALES}")
    if not stems[0]:
        raise CheckpointError(f"{weights.folder} holds no MXFP4 tensor (*{BLOCKS}): there is nothing to dequantize")
    for name in sorted(weights.files, key=lambda name: (weights.files[name], name)):
        if name.endswith(BLOCKS):
            stem = name.removesuffix(BLOCKS)
            try:
                yield stem, dequantize(weights.read(name), weights.read(stem + SCALES))
            except CheckpointError as error:
                raise CheckpointError(f"{stem}: {error}") from error
        elif not name.endswith(SCALES):
            yield name, weights.read(name)


def quantized_tensors(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of an MXFP4 checkpoint with the experts of a BF16 one."""
    for name in sorted(weights.files):
        if name.endswith(EXPERTS):
            blocks, scales = quantize(weights.read(name))
            yield name + BLOCKS, blocks
            yield name + SCALES, scales
        else:
            yield name, weights.read(name)


def write_shards(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]], advance: Callable[[int], Any]) -> dict[str, str]:
    """Write tensors in shards with an index; returns shard -> sha256."""
    shards: list[dict[str, int]] = []  # tensor name -> bytes
    held: dict[str, torch.Tensor] = {}

    def flush() -> None:
        path = folder / f"part-{len(shards):05d}"
        save_file(held, path, metadata={"format": "pt"})
        with path.open("rb") as file:
            os.fsync(file.fileno())
        shards.append({name: tensor.nbytes for name, tensor in held.items()})
        held.clear()

    for name, tensor in tensors:
        held[name] = tensor.contiguous()
        advance(tensor.nbytes)
        if sum(t.nbytes for t in held.values()) >= SHARD_BYTES:
            flush()
    if held:
        flush()
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, name in enumerate(names):
        os.replace(folder / f"part-{i:05d}", folder / name)
        (folder / name).chmod((folder / "config.json").stat().st_mode)  # safetensors leaves its files to the owner alone
    index = {
        "metadata": {"total_size": sum(sum(shard.values()) for shard in shards)},
        "weight_map": {name: file for shard, file in zip(shards, names, strict=True) for name in shard},
    }
    write_json_atomically(folder / INDEX, index)
    return {name: sha256(folder / name) for name in names}


def convert(
    source: Path,
    output: Path,
    tensors: Callable[[Weights], Iterator[tuple[str, torch.Tensor]]],
    config: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    needed: Callable[[int], int],
    overwrite: bool = False,
    advance: Callable[[int], Any] = lambda _: None,
) -> dict[str, Any]:
    """Write `output`, which appears in one rename when everything in it is written.

    Args:
        tensors: what is to be written, of the source's weights.
        config: the output's config.json, of the source's.
        needed: bytes of the output, of those of the source's weights.

    Returns:
        What mxfp4_meta.json holds.

    Raises:
        CheckpointError: the source is not what it should be, or the output cannot be there; nothing is written then.
    """
    weights = Weights(source)
    files, left_behind = companions(source, set(weights.files.values()))
    size = sum((source / name).stat().st_size for name in set(weights.files.values()) if (source / name).is_file())
    check_place(output, [source], needed(size), overwrite=overwrite, mark=META)
    with new_folder(output) as partial:
        for path in files:
            shutil.copyfile(path, partial / path.name)
        write_json_atomically(partial / "config.json", config(dict(weights.config)))
        shards = write_shards(partial, tensors(weights), advance)
        meta = {
            "source": str(source),
            "source_shards": {name: sha256(source / name) for name in sorted(set(weights.files.values()))},
            "shards": shards,
            "left_behind": left_behind,
        }
        write_json_atomically(partial / META, meta)
    return meta


def dequantize_checkpoint(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    """The MXFP4 checkpoint `source` as BF16, exactly; see `convert`."""

    def config(old: dict[str, Any]) -> dict[str, Any]:
        method = old.pop("quantization_config", {}).get("quant_method")
        if method != "mxfp4":
            raise CheckpointError(f"{source} is {f'quantized by {method}' if method else 'not quantized'}, not MXFP4")
        return {**old, "dtype": "bfloat16"}

    config(dict(Weights(source).config))  # refuse before anything is written
    return convert(source, output, dequantized_tensors, config, needed=lambda size: 4 * size, **options)


def quantize_checkpoint(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    """The BF16 checkpoint `source` with experts rounded to MXFP4: for tests and made-up checkpoints; see `convert`."""

    def config(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": NOT_CONVERTED}}

    return convert(source, output, quantized_tensors, config, needed=lambda size: size, **options)
