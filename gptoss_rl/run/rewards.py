"""Calling the reward function so that its failure is the run's failure.

Upstream logs an exception of the reward function at INFO and goes on with `reward=None`; one `None` in a
micro-batch then drops every reward of it.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any

from gptoss_rl.errors import RewardError
from gptoss_rl.prompts import describe_prompt

# The keys of extra_logs that reach tensors and collectives. A fixed set, because a key that is missing on one
# sample or rank mismatches a collective or hangs it. Anything else a reward function
# returns is dropped here, before it can do harm.
EXTRA_LOG_KEYS = ("answer_found", "final_channel")


def numeric(value: Any) -> float | None:
    """The float in a number, a one-element tensor or a one-element list; None when there is none."""
    if isinstance(value, (list, tuple)):
        return numeric(value[0]) if len(value) == 1 else None
    if hasattr(value, "numel"):
        return float(value.item()) if value.numel() == 1 else None
    return float(value) if isinstance(value, (bool, int, float)) else None


def fixed_extra_logs(extra_logs: dict[str, Any] | None) -> dict[str, float]:
    """Exactly `EXTRA_LOG_KEYS`, as finite floats; missing or non-numeric entries become 0.0."""
    logs = extra_logs or {}
    values = {key: numeric(logs.get(key)) for key in EXTRA_LOG_KEYS}
    return {key: value if value is not None and math.isfinite(value) else 0.0 for key, value in values.items()}


def read_reward(result: Any, where: str) -> dict[str, Any]:
    """Check one result of a reward function, given for a batch of one.

    Returns:
        reward and scores as floats (a score of 0.0 stays 0.0), extra_logs with the fixed keys.

    Raises:
        RewardError: not a dict, no reward, or a reward or score that is not a finite number.
    """
    if not isinstance(result, dict):
        raise RewardError(f"the reward function returned {type(result).__name__} instead of a dict for {where}")
    reward = numeric(result.get("rewards"))
    if reward is None or not math.isfinite(reward):
        raise RewardError(f"the reward is {result.get('rewards')!r}, not a finite number, for {where}")
    score = reward if result.get("scores") is None else numeric(result["scores"])
    if score is None or not math.isfinite(score):
        raise RewardError(f"the score is {result['scores']!r}, not a finite number, for {where}")
    return {"reward": reward, "scores": score, "extra_logs": fixed_extra_logs(result.get("extra_logs"))}


async def score_response(
    reward_func: Callable[[list[str], list[str], list[str]], dict],
    *,
    prompt: str,
    response: str,
    label: str,
    timeout: float,
) -> dict[str, Any]:
    """Reward of one response, from a thread of its own.

    Raises:
        RewardError: see `read_reward`; also when the function raises or takes longer than `timeout` seconds.
    """
    where = f"{describe_prompt(prompt)} with label {label!r}"
    call = asyncio.to_thread(reward_func, [prompt + response], [prompt], [label])
    try:
        result = await asyncio.wait_for(call, timeout)
    except asyncio.TimeoutError:
        raise RewardError(
            f"the reward function took longer than {timeout:g} s (--reward_timeout) for {where}; "
            f"response starts {response[:120]!r}"
        ) from None
    except Exception as error:  # the user's function may raise anything; each of it must stop the run
        raise RewardError(f"the reward function raised {type(error).__name__}: {error} for {where}") from error
    return read_reward(result, where)
