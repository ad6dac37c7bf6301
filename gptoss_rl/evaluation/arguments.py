"""The flags that every evaluation script has."""

from typing import Any

import torch

from gptoss_rl.prompts import DEFAULT_REASONING_EFFORT, REASONING_EFFORTS


def add_decoding(parser: Any, *, temperature: float, n_samples: int) -> None:
    """Add how responses are made to a parser or a group of it, with a script's own defaults."""
    add = parser.add_argument
    add("--temperature", type=float, default=temperature, help=f"default: {temperature:g}; 0 is greedy, for one sample")
    add("--n_samples", type=int, default=n_samples, help=f"responses to each problem; default: {n_samples}")
    add("--max_tokens", type=int, default=4096, help="tokens of a response; default: 4096")
    add("--reasoning_effort", choices=REASONING_EFFORTS, default=DEFAULT_REASONING_EFFORT,
        help=f"default: {DEFAULT_REASONING_EFFORT}")  # fmt: skip
    add("--seed", type=int, default=0, help="of the engine's sampling; default: 0")
    shards = 2 if torch.cuda.is_available() else 1
    add("--tp", type=int, default=shards, help="tensor-parallel shards; default: 2, 1 on a CPU")
