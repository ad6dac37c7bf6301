"""What is evaluated on, and how: problems and decoding."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reward_func_em
from gptoss_rl.data.files import DataError, read_lines
from gptoss_rl.prompts import problem_id, prompt_fingerprint, render_prompt


class EvaluationError(RuntimeError):
    """An evaluation that cannot be made, or two that cannot be compared."""


@dataclass(frozen=True)
class Decoding:
    """Everything besides model and problems that decides what is measured; compared before evaluations are."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 4096
    n_samples: int = 1
    reasoning_effort: str = "medium"
    prompt_fingerprint: str = ""

    @staticmethod
    def of(temperature: float, max_tokens: int, n_samples: int, reasoning_effort: str) -> "Decoding":
        """Raises EvaluationError for several greedy samples, which would be one sample counted several times."""
        if n_samples > 1 and temperature == 0:
            raise EvaluationError("--n_samples above 1 needs --temperature above 0: greedy samples are all the same")
        if n_samples < 1 or max_tokens < 1 or temperature < 0:
            raise EvaluationError("--n_samples and --max_tokens are at least 1, --temperature at least 0")
        return Decoding(temperature, 1.0, max_tokens, n_samples, reasoning_effort, prompt_fingerprint(reasoning_effort))


@dataclass(frozen=True)
class Problem:
    id: str
    text: str
    label: str


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an evaluation set, JSON lines with input and label.

    Raises:
        EvaluationError: a row lacks one of them, cannot be a prompt, or a problem stands there twice.
    """
    try:
        rows = read_lines(path)
    except DataError as error:
        raise EvaluationError(str(error)) from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("input"), str) or row.get("label") in (None, ""):
            raise EvaluationError(f"{path}, row {number}: needs input and label")
        try:
            render_prompt(row["input"])
        except ValueError as error:
            raise EvaluationError(f"{path}, row {number}: {error}") from error
    counts = Counter(problem_id(row["input"]) for row in rows)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise EvaluationError(f"{path}: {len(twice)} problems stand there twice, first {twice[0]}")
    return rows


def read_problems(path: Path, limit: int | None = None) -> list[Problem]:
    """The first `limit` problems of an evaluation set; errors as of `read_rows`, and for a label that is no integer."""
    if limit is not None and limit < 1:
        raise EvaluationError(f"--limit {limit}: at least 1 problem")
    problems = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            reward_func_em.parse_label(row["label"])
        except ValueError as error:
            raise EvaluationError(f"{path}, row {number}: {error}") from error
        problems.append(Problem(problem_id(row["input"]), row["input"], str(row["label"])))
    return problems[:limit]


def read_sets(paths: list[Path], limit: int | None = None) -> dict[Path, list[Problem]]:
    """Several sets. Raises EvaluationError also when two would be written to one folder, which has a set's name."""
    stems = Counter(path.stem for path in paths)
    same = [str(path) for path in paths if stems[path.stem] > 1]
    if same:
        raise EvaluationError(f"{' and '.join(same)} would be written to one folder; rename one, or name it once")
    return {path: read_problems(path, limit) for path in paths}
