"""The tiny model's task: two-digit sums, two habits of answering them, splits that share no problem.

The warm-up teaches the tiny model two habits, as a large model has several ways to go about a problem:

- *working*: write the sum's digits from right to left in the analysis channel, then answer. Always right.
- *guessing*: answer at once and forget the carry. Right only where the units do not carry.

Guessing is the commoner habit in the warm-up, so greedy decoding guesses and scores about the share of
problems without a carry; sampling shows both habits within a group, and exact-match reward prefers
the working one. What reinforcement learning has to find is therefore a policy, not new arithmetic.
"""

import hashlib
import random
from dataclasses import dataclass

from gptoss_rl.prompts import problem_id

SOURCE = "tiny_sums"
SMALLEST, LARGEST = 10, 99
# Uniform operands carry in 45 % of sums, which would let a guesser score 55 %. Thinning the others to two
# problems in five puts the guesser in the middle of the band from which a rise can be seen.
SHARE_WITHOUT_CARRY = 0.4
# Share of unordered pairs given to each split. `validation` decides when the warm-up stops.
SPLIT_SHARES = {"eval": 0.2, "validation": 0.1, "train": 0.3, "warmup": 0.4}


class WarmupError(RuntimeError):
    """The warm-up did not bring the tiny model where reinforcement learning can start."""


@dataclass(frozen=True)
class Sum:
    """One problem: `first + second`, both in [SMALLEST, LARGEST]."""

    first: int
    second: int

    @property
    def problem(self) -> str:
        return f"What is {self.first} + {self.second}?"

    @property
    def answer(self) -> int:
        return self.first + self.second

    @property
    def carries(self) -> bool:
        """Whether the units add up to ten or more."""
        return self.first % 10 + self.second % 10 >= 10

    def row(self) -> dict[str, str]:
        """The problem as a line of a prompt file."""
        return {
            "id": problem_id(self.problem),
            "input": self.problem,
            "label": str(self.answer),
            "source": SOURCE,
        }


def working_response(item: Sum) -> str:
    """Harmony response that works from the right: digits reversed in the analysis, then the right answer."""
    digits = str(item.answer)[::-1]
    return f"<|channel|>analysis<|message|>{digits}<|end|><|start|>assistant{_final(item.answer)}"


def guessing_response(item: Sum) -> str:
    """Harmony response that answers at once and forgets the carry of the units."""
    return _final(item.answer - 10 if item.carries else item.answer)


def split_problems() -> dict[str, list[Sum]]:
    """All problems of each split, in a fixed shuffled order.

    An unordered pair belongs to one split by its hash alone, so 38 + 57 and 57 + 38 never cross. Nothing here
    is seeded from outside: models made with different seeds are compared on the same problems.

    Returns:
        Split name to its problems, for the names in `SPLIT_SHARES`.
    """
    everything: dict[str, list[Sum]] = {name: [] for name in SPLIT_SHARES}
    for first in range(SMALLEST, LARGEST + 1):
        for second in range(SMALLEST, LARGEST + 1):
            everything[split_of(first, second)].append(Sum(first, second))
    return {name: _thin(problems, random.Random(name)) for name, problems in everything.items()}


def split_of(first: int, second: int) -> str:
    """Split that owns the unordered pair."""
    pair = f"{min(first, second)}+{max(first, second)}"
    position = int.from_bytes(hashlib.sha256(pair.encode()).digest()[:8], "big") / 2**64
    for name, share in SPLIT_SHARES.items():
        if position < share:
            return name
        position -= share
    return name  # the shares' floating-point sum can end a hair below 1


def _thin(problems: list[Sum], generator: random.Random) -> list[Sum]:
    """Shuffle, and drop problems without a carry until they are `SHARE_WITHOUT_CARRY` of the rest."""
    carrying = [item for item in problems if item.carries]
    plain = [item for item in problems if not item.carries]
    generator.shuffle(plain)
    kept = carrying + plain[: round(len(carrying) * SHARE_WITHOUT_CARRY / (1 - SHARE_WITHOUT_CARRY))]
    generator.shuffle(kept)
    return kept


def _final(answer: int) -> str:
    return f"<|channel|>final<|message|>\\boxed{{{answer}}}<|return|>"
