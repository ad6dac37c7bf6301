"""Peak memory and time of logprobs at gpt-oss-20b's vocabulary: upstream's way against gptoss_rl.training.logprob_head.

Each way runs in its own process: hidden states (2 x tokens, 2880) and the output projection (201,088, 2880) are made, then
logprobs of random labels, their sum, and its gradient with respect to the hidden states. The peak is what came on top
of these inputs. `upstream` is 0.9.3's code: all logits, a float32 copy, `log_probs_from_logits`, and with --entropy its
`compute_entropy`.

    python benchmarks/bench_logprob_head.py                     # 2 x 512 tokens, float32, CPU: 10 GB, some minutes
    python benchmarks/bench_logprob_head.py --tokens 4096 --ways chunked
    python benchmarks/bench_logprob_head.py --device cuda --dtype bfloat16 --tokens 4096
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

VOCABULARY, HIDDEN, SEQUENCES = 201_088, 2880, 2


def upstream(hidden, weight, labels, entropy: bool):
    """OpenRLHF 0.9.3, models/actor.py Actor.forward with models/utils.py."""
    from openrlhf.models.utils import compute_entropy, log_probs_from_logits

    logits = torch.nn.functional.linear(hidden, weight).to(torch.float32)
    if entropy:
        compute_entropy(logits)
    return log_probs_from_logits(logits, labels)


def chunked(hidden, weight, labels, entropy: bool):
    """Values and entropies come together here, so `entropy` costs nothing more."""
    from gptoss_rl.training.logprob_head import FrozenHeadLogProbs

    flat = hidden.reshape(-1, HIDDEN)
    return FrozenHeadLogProbs.apply(flat, weight, labels.reshape(-1), 1.0, 256, False)[0]


def resident_peak(device: str) -> int:
    """Bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def measure(way: str, args: argparse.Namespace) -> dict[str, float]:
    """In a process of its own: seconds of each repeat, and the peak above the inputs."""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    weight = torch.empty(VOCABULARY, HIDDEN, dtype=dtype, device=args.device).normal_(std=0.02)
    hidden = torch.empty(SEQUENCES, args.tokens, HIDDEN, dtype=dtype, device=args.device).normal_().requires_grad_()
    labels = torch.randint(0, VOCABULARY, (SEQUENCES, args.tokens), device=args.device)
    before, seconds = resident_peak(args.device), []
    for _ in range(args.repeats):
        hidden.grad = None
        start = time.perf_counter()
        total = globals()[way](hidden, weight, labels, args.entropy).sum()
        total.backward()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = resident_peak(args.device) - before
    return {
        "seconds": statistics.median(seconds),
        "peak_gb": peak / 1e9,
        "sum": total.item(),
        "grad": hidden.grad.norm().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512, help="of each of the two sequences")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--entropy", action="store_true", help="upstream also computes the entropy of every token")
    parser.add_argument("--ways", nargs="+", choices=("upstream", "chunked"), default=["upstream", "chunked"])
    parser.add_argument("--only", choices=("upstream", "chunked"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args)))
        return
    results = {}
    for way in args.ways:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", way]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{way} failed (rc {done.returncode}; negative 9 is out of memory): {done.stderr[-600:]}")
        results[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"{way:10s} {results[way]['seconds']:8.3f} s   {results[way]['peak_gb']:7.3f} GB   "
              f"sum {results[way]['sum']:.6g}   |grad| {results[way]['grad']:.6g}")  # fmt: skip
    if len(results) == 2:
        up, ours = results["upstream"], results["chunked"]
        print(f"chunked / upstream: time {ours['seconds'] / up['seconds']:.2f}, memory {ours['peak_gb'] / up['peak_gb']:.3f}")


if __name__ == "__main__":
    main()
