"""Coverage of the intervals and power of the tests, by simulation: what is printed against what is seen.

Cases of which sets are made (rates around a half, a tenth of the problems differ) and those at the edges, where few problems
say anything: scores near 0, small sets, models that hardly differ. Evaluations of several samples take a tenth of the runs
where two are compared, as each draws a bootstrap and a permutation test.

    python benchmarks/coverage.py --runs 10000
"""

import argparse
from collections.abc import Callable
from functools import cache

import numpy as np

from gptoss_rl.stats import Comparison, Score, compare, comparison, detectable_mcnemar, mcnemar, score

ALPHA = 0.05
DISCORDANT = 0.18  # share of problems that differ, for power
EFFECT_PILOTS = 50  # comparisons whose printed detectable difference is averaged
TIE = 1e-9  # true differences and bootstrap ends are both whole problems, up to rounding
Simulation = Callable[[np.random.Generator, int, int], float]  # generator, problems, runs -> share of runs


def covers(one: Score | Comparison, true: float) -> bool:
    return one.low - TIE <= true <= one.high + TIE


@cache
def scored(right: int, n: int) -> Score:
    return score([1.0] * right + [0.0] * (n - right))


@cache
def compared(gained: int, lost: int, n: int) -> Comparison:
    """Of one sample a problem; which problems are right in both makes no difference to the difference."""
    same = [1.0] * (n - gained - lost)
    return compare([0.0] * gained + [1.0] * lost + same, [1.0] * gained + [0.0] * lost + same)


def single(rate: float) -> Simulation:
    """One sample a problem."""

    def simulate(rng: np.random.Generator, n: int, runs: int) -> float:
        scores = (scored(int(right), n) for right in rng.binomial(n, rate, runs))
        return float(np.mean([covers(s, rate) for s in scores]))

    return simulate


def clustered(samples: int, a: float, b: float) -> Simulation:
    """Several samples of each problem, whose solve rates are drawn from Beta(a, b)."""

    def simulate(rng: np.random.Generator, n: int, runs: int) -> float:
        scores = (score(rng.binomial(samples, rng.beta(a, b, n)) / samples) for _ in range(runs))
        return float(np.mean([covers(s, a / (a + b)) for s in scores]))

    return simulate


def paired(up: float, down: float) -> Simulation:
    """One sample a problem, of which two models gain and lose these shares."""

    def simulate(rng: np.random.Generator, n: int, runs: int) -> float:
        drawn = rng.multinomial(n, [up, down, 1 - up - down], runs)
        results = (compared(int(gained), int(lost), n) for gained, lost, _ in drawn)
        return float(np.mean([covers(c, up - down) for c in results]))

    return simulate


def two_of(rng: np.random.Generator, n: int, moved: float, by: float) -> tuple[np.ndarray, np.ndarray]:
    """(n,) shares of eight samples of two models: B solves `by` of what is left to A, on a share `moved` of the problems."""
    a = rng.beta(1.3, 0.7, n)
    b = np.where(rng.random(n) < moved, a + by * (1 - a), a)
    return rng.binomial(8, a) / 8, rng.binomial(8, b) / 8


def clustered_pairs(moved: float, by: float) -> Simulation:
    def simulate(rng: np.random.Generator, n: int, runs: int) -> float:
        true, results = moved * by * 0.35, (compare(*two_of(rng, n, moved, by)) for _ in range(runs // 10))
        return float(np.mean([covers(c, true) for c in results]))

    return simulate


def alike_pairs(rng: np.random.Generator, n: int, runs: int) -> float:
    """Eight samples of problems that both models nearly always or nearly never solve; B is a little better at the former."""
    results = []
    for _ in range(runs // 10):
        known = rng.random(n) < 0.5
        a, b = np.where(known, 0.998, 0.001), np.where(known, 0.999, 0.001)
        results.append(compare(rng.binomial(8, a) / 8, rng.binomial(8, b) / 8))
    return float(np.mean([covers(c, 0.0005) for c in results]))


def power(rng: np.random.Generator, n: int, runs: int) -> float:
    """Share of draws in which exact McNemar finds the effect that is printed as detectable."""
    effect = detectable_mcnemar(n, DISCORDANT)
    drawn = rng.multinomial(n, [(DISCORDANT + effect) / 2, (DISCORDANT - effect) / 2, 1 - DISCORDANT], runs)
    return float(np.mean([mcnemar(int(gained), int(lost)) < ALPHA for gained, lost, _ in drawn]))


def clustered_power(rng: np.random.Generator, n: int, runs: int) -> float:
    """The same for eight samples and the sign-flip test, at the mean of the printed effects."""
    printed = float(np.mean([compare(*two_of(rng, n, 1, 0.1)).detectable for _ in range(EFFECT_PILOTS)]))
    results = (compare(*two_of(rng, n, 1, printed / 0.35)) for _ in range(runs // 10))
    return float(np.mean([c.p_value < ALPHA for c in results]))


CASES: tuple[tuple[str, Simulation, tuple[int, ...]], ...] = (
    ("one sample, 65 %", single(0.65), (200, 1000)),
    ("one sample, 1 %", single(0.01), (200, 1000)),
    ("8 samples, mean 65 %", clustered(8, 1.3, 0.7), (200, 1000)),
    ("8 samples, mean 2 %, most problems never", clustered(8, 0.02, 1), (200, 1000)),
    ("16 samples, mean 0.5 %, most problems never", clustered(16, 0.005, 1), (1000,)),
    ("16 samples, mean 4.8 %, most problems never", clustered(16, 0.05, 1), (48,)),
    ("16 samples, mean 30 %", clustered(16, 0.3, 0.7), (18,)),
    ("difference, 9 % gained and 3 % lost", paired(0.09, 0.03), (200, 1000)),
    ("difference, 2 % gained and 1 % lost", paired(0.02, 0.01), (200, 1000)),
    ("difference, 3 % gained and 0.3 % lost", paired(0.03, 0.003), (200, 1000)),
    ("difference, 1 % gained and 0.5 % lost", paired(0.01, 0.005), (200, 1000)),
    ("difference, 0.2 % gained and 0.1 % lost", paired(0.002, 0.001), (200, 1000)),
    ("difference of 8 samples, 3.5 points", clustered_pairs(1, 0.1), (200, 1000)),
    ("difference of 8 samples, on 2 % of problems", clustered_pairs(0.02, 0.9), (200, 1000)),
    ("difference of 8 samples, models nearly alike", alike_pairs, (200, 1000)),
    ("power of McNemar at the printed effect (80 %)", power, (200, 1000)),
    ("power of sign flips at the printed effect (80 %)", clustered_power, (200, 1000)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=999, help="of bootstrap and sign flips; a comparison takes 9,999")
    args = parser.parse_args()
    comparison.RESAMPLES = args.resamples
    print(f"nominal {1 - ALPHA:.0%}, {args.runs} runs")
    for name, simulate, sizes in CASES:
        seen = [f"{n:,}: {simulate(np.random.default_rng([args.seed, n]), n, args.runs):.1%}" for n in sizes]
        print(f"{name:50s}{', '.join(seen)}", flush=True)


if __name__ == "__main__":
    main()
