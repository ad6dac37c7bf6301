"""A random gpt-oss of the 20B model's dimensions, as MXFP4 and as its exact BF16: for measurements without its weights.

At a standard deviation of 0.02 everywhere a random model of many layers is chaotic: an expert chosen differently turns the
rest over, and two roundings of it differ by 0.26 nats. Scaled as here, by 0.009 at four layers and 0.06 at 24 (2 H100,
results/2026-11-25_h100), so that it can tell a fault from rounding. 24 layers take 56 GB of disk and 45 GB of memory.

    python benchmarks/make_random_20b.py models/random-20b          # models/random-20b-mxfp4 and models/random-20b-bf16
"""

import argparse
import shutil
from pathlib import Path

from gptoss_rl.models.mxfp4 import dequantize_checkpoint, quantize_checkpoint
from gptoss_rl.models.random_model import save_random_gpt_oss
from gptoss_rl.models.tiny_tokenizer import build_tokenizer

SCALES = {"embed_tokens": 50.0, "router.weight": 4.0, "o_proj": 0.3, "experts.down_proj": 0.3}
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096}  # fmt: skip
DIMENSIONS = {
    "hidden_size": 2880, "intermediate_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "num_local_experts": 32, "num_experts_per_tok": 4, "vocab_size": 201_088, "sliding_window": 128,
    "max_position_embeddings": 131_072, "eos_token_id": 200_002, "pad_token_id": 199_999,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2880, help="hidden and expert size; a multiple of 64")
    args = parser.parse_args()
    changes = {"num_hidden_layers": args.layers, "hidden_size": args.width, "intermediate_size": args.width}
    raw, mxfp4, bf16 = (args.name.with_name(f"{args.name.name}-{kind}") for kind in ("raw", "mxfp4", "bf16"))
    save_random_gpt_oss(raw, std=0.02, scales=SCALES, rope_scaling=YARN, **(DIMENSIONS | changes))
    build_tokenizer(DIMENSIONS["max_position_embeddings"]).save_pretrained(raw)  # 320 of the ids; the others are never text
    quantize_checkpoint(raw, mxfp4)
    shutil.rmtree(raw)
    dequantize_checkpoint(mxfp4, bf16)
    print(f"{mxfp4} and {bf16}")


if __name__ == "__main__":
    main()
