"""A random gpt-oss of any size, 20B unless told, in the released MXFP4 layout, and the same in BF16 for the trainer.

For measurements and fault injection at real size without the real weights: names, shapes, formats and config are the released
model's, the numbers are drawn from --seed, the tokenizer is the tiny model's. Drawn and quantised on a GPU if there is one;
20B take 56 GB of disk with the twin, 14 GB without.

    python make_random_gptoss.py models/random-20b                          # models/random-20b-mxfp4, models/random-20b-bf16
    python make_random_gptoss.py models/random-4l --layers 4 --no_twin
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from gptoss_rl.models.folder import CheckpointError
from gptoss_rl.models.random_checkpoint import Shape, save_random_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", type=Path, help="NAME-mxfp4 and NAME-bf16 are made")
    for field in fields(Shape):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help=f"default: {field.default}, gpt-oss-20b's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_twin", action="store_true", help="leave the BF16 directory out")
    parser.add_argument("--overwrite", action="store_true", help="replace what this script made there before")
    args = parser.parse_args()
    mxfp4, bf16 = (args.name.with_name(f"{args.name.name}-{kind}") for kind in ("mxfp4", "bf16"))
    shape = Shape(**{field.name: getattr(args, field.name) for field in fields(Shape)})
    made = [mxfp4] if args.no_twin else [mxfp4, bf16]
    try:
        with tqdm(total=len(made) * (shape.layers + 1), unit="shard", disable=None) as bar:
            save_random_checkpoint(
                mxfp4, None if args.no_twin else bf16, shape, seed=args.seed, overwrite=args.overwrite, advance=bar.update,
                device="cuda" if torch.cuda.is_available() else "cpu",
            )  # fmt: skip
    except (CheckpointError, ValueError, OSError) as error:
        sys.exit(f"make_random_gptoss: {error}")
    print(" and ".join(map(str, made)))


if __name__ == "__main__":
    main()
