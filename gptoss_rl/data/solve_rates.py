"""How often the base model solves each problem, from the records of eval_baseline.py."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from gptoss_rl.data.files import DataError, read_lines


def solve_rates(path: Path) -> dict[str, float]:
    """Problem id -> share of right samples.

    Raises:
        DataError: the rows are no records of one policy, or not the base model's; or the evaluation was not finished.
    """
    refuse_adapter(path)
    samples: dict[str, list[bool]] = defaultdict(list)
    seen: set[tuple[str, Any]] = set()
    for number, row in enumerate(read_lines(path), start=1):
        where = f"{path}, row {number}"
        if not isinstance(row.get("id"), str) or not isinstance(row.get("correct"), bool):
            raise DataError(f"{where}: needs the fields id (text) and correct (true or false)")
        if "step" in row:
            raise DataError(
                f"{where} is of a policy in training (step {row['step']}); rates are the base model's: eval_baseline.py"
            )
        if "sample" in row:
            key = (row["id"], str(row["sample"]))
            if key in seen:
                raise DataError(f"{where}: sample {row['sample']} of problem {row['id']} stands there twice")
            seen.add(key)
        samples[row["id"]].append(row["correct"])
    most = max(map(len, samples.values()))
    fewer = [key for key, values in samples.items() if len(values) < most]
    if fewer:
        raise DataError(
            f"{path}: {len(fewer)} problems have fewer than {most} samples, first {fewer[0]}; the evaluation was not finished: "
            "give its command again"
        )
    return {key: sum(values) / len(values) for key, values in samples.items()}


def refuse_adapter(records: Path) -> None:
    """Raises DataError when a file beside the records says that an adapter made them."""
    for beside in (records.with_suffix(".identity.json"), records.with_suffix(".summary.json")):
        if not beside.is_file():
            continue
        try:
            made_with = json.loads(beside.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{beside} is damaged ({error})") from error
        if isinstance(made_with, dict) and made_with.get("adapter"):
            raise DataError(
                f"{records} was made with the adapter {made_with['adapter']}; rates are the base model's: eval_baseline.py"
            )
