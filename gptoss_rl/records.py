"""One response to a problem as one line: of samples.jsonl and eval.jsonl in a run, and of an evaluation outside one.

`id`, `prompt`, `response`, `label`, `answer`, `value`, `final_channel`, `tokens`, `finish_reason`; `reward` and `correct`
unless nobody can grade the label; in a run `step` and `policy_version`, outside one `sample`, the number of the response.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import reward_func_em

Record = dict[str, Any]


def make_record(
    problem: str, prompt: str, response: str, label: str, *, tokens: int, finish_reason: str, reward: float | None = None
) -> Record:
    """What was said and what became of it; without a verdict when the label is no integer, which others grade.

    Args:
        problem: its id.
        reward: what training saw; by default what the grader gives.
    """
    gradable = reward_func_em.LABEL.fullmatch(str(label)) is not None
    graded = reward_func_em.grade(response, label if gradable else 0)
    if reward is None and gradable:
        reward = float(graded.correct)
    # The reward is what training sees; as an evaluation, a response that was cut off is wrong.
    verdict = {} if reward is None else {"reward": reward, "correct": reward > 0 and finish_reason != "length"}
    return {
        "id": problem,
        "prompt": prompt,
        "response": response,
        "label": label,
        "answer": graded.answer,
        "value": None if graded.value is None else str(graded.value),
        "final_channel": graded.final_channel,
        **verdict,
        "tokens": tokens,
        "finish_reason": finish_reason,
    }


def by_step(records: Iterable[Record]) -> dict[int | None, list[Record]]:
    """The evaluations of a run in the order of their steps; one outside a run has no step, and is that of None."""
    found: dict[int | None, list[Record]] = {}
    for record in records:
        found.setdefault(record.get("step"), []).append(record)
    return dict(sorted(found.items(), key=lambda item: -1 if item[0] is None else item[0]))


def by_problem(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Problem id -> its samples."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["id"], []).append(record)
    return found


def shares(records: Iterable[Record]) -> dict[str, float]:
    """Problem id -> share of its samples that are right."""
    samples = by_problem(records)
    return {problem: sum(bool(one["correct"]) for one in found) / len(found) for problem, found in samples.items()}


def shares_by_step(records: Iterable[Record]) -> dict[int | None, dict[str, float]]:
    return {step: shares(found) for step, found in by_step(records).items()}


def drawn_twice(records: Iterable[Record]) -> list[tuple[str, int]]:
    """(problem id, number of the sample) of those that stand there more than once."""
    counts = Counter((one["id"], one["sample"]) for one in records if "sample" in one)
    return [key for key, count in counts.items() if count > 1]
