"""The released gpt-oss checkpoint as BF16: what the trainer loads, because MXFP4 experts have no backward.

Only the experts are MXFP4; their every value is a BF16 number, so the two directories are the same function (preflight
compares them). A tensor at a time on the CPU: 20B take 7 GB of memory, 42 GB of disk and, from what two layers took, about five
minutes on two cores.

    python dequantize_mxfp4.py models/gpt-oss-20b models/gpt-oss-20b-bf16
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from gptoss_rl.models.folder import CheckpointError, leftovers
from gptoss_rl.models.mxfp4 import dequantize_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="MXFP4 model directory, as released")
    parser.add_argument("output", type=Path, help="directory to make; must not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output of this script")
    args = parser.parse_args()
    for path in leftovers(args.output):
        print(f"dequantize_mxfp4: left over from an interrupted attempt, remove it: {path}", file=sys.stderr)
    try:
        with tqdm(unit="B", unit_scale=True, desc="dequantising", disable=None) as bar:
            meta = dequantize_checkpoint(args.source, args.output, overwrite=args.overwrite, advance=bar.update)
    except (CheckpointError, OSError) as error:
        sys.exit(f"dequantize_mxfp4: {error}")
    except KeyboardInterrupt:
        sys.exit("dequantize_mxfp4: interrupted; nothing was written")
    print(f"{args.output}: {len(meta['shards'])} shards")
    if meta["left_behind"]:
        print(f"not copied: {', '.join(meta['left_behind'])}")


if __name__ == "__main__":
    main()
