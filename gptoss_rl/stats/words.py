"""Comparisons and plans in words; never more than the figures say."""

from gptoss_rl.stats.base import ALPHA, POWER, StatsError
from gptoss_rl.stats.comparison import Comparison
from gptoss_rl.stats.power import (
    MOST_PROBLEMS,
    check_share,
    detectable_mcnemar,
    least_detectable,
    least_discordant,
    problems_needed,
)
from gptoss_rl.stats.tiers import tier_label


def size(share: float) -> str:
    """A difference in points without its sign; as many digits as it takes not to be 0."""
    value = 100 * abs(share)
    return f"{value:.1f}" if value == 0 or value >= 0.05 else f"{value:.1g}"


def points(share: float) -> str:
    return f"{'-' if share < 0 else '+'}{size(share)}"


def percent(level: float) -> str:
    return f"{100 * level:.3g} %"


def interval(c: Comparison) -> str:
    return f"{percent(c.level)} interval {points(c.low)} to {points(c.high)}"


def power(c: Comparison) -> str:
    if c.detectable is None:
        return f"{c.a.n} problems are too few to find any difference."
    return f"This comparison would have found {size(c.detectable)} points with {percent(POWER)} probability."


def conclusion(c: Comparison) -> str:
    """In words, what may be concluded: a difference only where test and interval both show it."""
    beyond = c.low > 0 or c.high < 0  # the interval leaves 0 out
    if c.p_value < ALPHA and beyond:
        better = "B is better than A" if c.difference > 0 else "B is worse than A"
        return f"{better}: by {size(c.difference)} points, {interval(c)}."
    gain, loss = f"a gain of more than {size(c.high)} points", f"a loss of more than {size(c.low)} points"
    if c.p_value < ALPHA:
        why = f"The test shows a difference (p = {c.p_value:.2g}), the interval does not, so that none is claimed."
        excluded = f"{gain} and {loss}"
    elif beyond:
        why = f"No difference can be told from chance: the interval leaves 0 out, but p is {c.p_value:.2g}."
        excluded = f"only {gain if c.low > 0 else loss}"
    else:
        why, excluded = "No difference can be told from chance.", f"{gain} and {loss}"
    return f"{why} What can be excluded at {percent(c.level)} is {excluded}. {power(c)}"


def report(c: Comparison, names: tuple[str, str] = ("A", "B")) -> str:
    """A comparison, a line each: both scores, the difference, the test, what could be found, the conclusion."""
    lines = [
        f"{name}  {s.mean:.1%}  (95 % interval {s.low:.1%} to {s.high:.1%}, n = {s.n})"
        for name, s in zip(names, (c.a, c.b), strict=True)
    ]
    found = "none" if c.detectable is None else f"{size(c.detectable)} points"
    lines += [
        f"B - A  {points(c.difference)} points  ({interval(c)}: at each end the wider of paired bootstrap and Agresti-Min)",
        f"p = {c.p_value:.3g} ({c.test}); {c.gained} problems gained, {c.lost} lost",
        f"smallest difference found with {percent(POWER)} probability: {found}",
        conclusion(c),
    ]
    return "\n".join(lines)


def what_problems_show(n: int, discordant_share: float) -> str:
    """What a comparison on n problems finds when so many of them differ.

    Raises:
        StatsError: there are no problems, more than any set has, or the share is none.
    """
    check_share(discordant_share)
    if n > MOST_PROBLEMS:
        raise StatsError(f"a plan is for at most {MOST_PROBLEMS:,} problems")
    named, least = f"{n:,} problems ({tier_label(n)})", least_detectable(n)
    if least is None:
        return f"{named}: nothing can be found; {least_discordant()} problems must differ, all one way, to be told from chance"
    named += f", {100 * discordant_share:g} % of which the two models differ on"
    effect = detectable_mcnemar(n, discordant_share)
    if effect > discordant_share:
        return f"{named}: no difference is found with {percent(POWER)} probability; {size(least)} % must differ, all one way"
    return f"{named}: {size(effect)} points are found with {percent(POWER)} probability"


def what_a_difference_needs(effect: float, discordant_share: float) -> str:
    """How many problems a difference needs when so many of them differ; errors as of `problems_needed`."""
    needed = problems_needed(effect, discordant_share)
    return (
        f"{100 * effect:g} points are found with {percent(POWER)} probability on {needed:,} problems, "
        f"{100 * discordant_share:g} % of which the two models differ on"
    )
