"""Gates that close before anything is started: the patch stack, the flags, the run directory and the data."""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptoss_rl.data.contamination import Problem, find_matches
from gptoss_rl.data.files import manifest_path
from gptoss_rl.data.verify import verify_file
from gptoss_rl.errors import GateError
from gptoss_rl.flags import resolve
from gptoss_rl.prompts import problem_id, render_prompt
from gptoss_rl.run.flag_rules import flag_problems
from gptoss_rl.run.resume import check_resume
from gptoss_rl.training.schedule import OPEN_ENDED, run_length, warmup_steps

MIN_GLOBAL_STEPS = 20
MAX_WARMUP_SHARE = 0.2
DATA = ("prompt_data", "eval_dataset")
SHOWN = 3  # offenders named in a message


def check_launch(args: argparse.Namespace) -> None:
    """Raises GateError (or PatchStackError) unless the run may start."""
    from gptoss_rl.stack.apply import check_stack

    check_stack()
    check_flags(args)
    resolve(args)
    if args.load_checkpoint:
        check_resume(args)
    train, _ = check_data(args)
    check_length(args, min(len(train), int(args.max_samples)))


def check_flags(args: argparse.Namespace) -> None:
    """Raises GateError naming every known-wrong flag at once, or else every data file that is not there."""
    problems = flag_problems(args)
    if problems:
        raise GateError("flags", "; ".join(problems))
    missing = missing_data(args)
    if missing:
        raise GateError("labels", "; ".join(missing))


def missing_data(args: argparse.Namespace, flags: Iterable[str] = DATA) -> list[str]:
    """Data files that are not there; one sentence each."""
    named = {flag: Path(path) for flag in flags if (path := getattr(args, flag))}
    return [
        f"--{flag} {path} is a folder, not a file" if path.is_dir() else f"--{flag} {path} does not exist"
        for flag, path in named.items()
        if not path.is_file()
    ]


def check_data(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and evaluation problems of a run, read and checked.

    Raises:
        GateError: a file is not what its manifest says, a row cannot be read or graded, or a training problem is in the
            evaluation set.
    """
    train = read_prompts(Path(args.prompt_data), args.input_key, args.label_key)
    evaluation = read_prompts(Path(args.eval_dataset), args.input_key, args.label_key) if args.eval_dataset else []
    check_manifests([Path(path) for path in (args.prompt_data, args.eval_dataset) if path])
    check_labels(train, args.prompt_data)
    check_labels(evaluation, args.eval_dataset)
    check_disjoint(train, evaluation)
    return train, evaluation


def read_prompts(path: Path, input_key: str, label_key: str) -> list[dict[str, Any]]:
    """Rows of a prompt file, JSON lines with an input and a label.

    Raises:
        GateError: naming file and line of what cannot be read.
    """
    rows = []
    with path.open("rb") as lines:  # bytes, so that a wrong one is reported with its line
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                rows.append({"id": row.get("id"), "problem": row[input_key], "label": row[label_key], "line": number})
            except (ValueError, KeyError, AttributeError) as error:
                raise GateError("labels", f"{path}, line {number}: cannot read the prompt ({error!r})") from error
    if not rows:
        raise GateError("labels", f"{path} holds no prompts")
    return rows


def _offenders(path: Any, rows: Iterable[dict[str, Any]]) -> str:
    rows = list(rows)
    shown = ", ".join(f"line {row['line']} ({str(row['problem'])[:50]!r}, label {row['label']!r})" for row in rows[:SHOWN])
    return f"{path}: {len(rows)} rows, e.g. {shown}"


def check_labels(rows: list[dict[str, Any]], path: str) -> None:
    """Raises GateError for a label that is no integer, an empty or duplicated prompt, or one that cannot be rendered."""
    from reward_func_em import parse_label

    def bad_label(row: dict[str, Any]) -> bool:
        try:
            parse_label(row["label"])
        except ValueError:
            return True
        return False

    bad = [row for row in rows if bad_label(row)]
    if bad:
        raise GateError("labels", f"labels must be integers. {_offenders(path, bad)}")
    for row in rows:
        try:
            render_prompt(row["problem"])
        except (ValueError, AttributeError) as error:
            raise GateError("labels", f"{path}, line {row['line']}: {error}") from error
    counts = Counter(problem_id(row["problem"]) for row in rows)
    twice = [row for row in rows if counts[problem_id(row["problem"])] > 1]
    if twice:
        raise GateError("labels", f"a prompt stands more than once. {_offenders(path, twice)}")


def check_manifests(paths: list[Path]) -> None:
    """Raises GateError when a file has a manifest beside it and is not what that says; links are followed."""
    for path in (path.resolve() for path in paths):
        faults = verify_file(path) if manifest_path(path).is_file() else []
        if faults:
            raise GateError("labels", f"{'; '.join(faults[:SHOWN])}. Make the file again.")


def check_disjoint(train: list[dict[str, Any]], evaluation: list[dict[str, Any]]) -> None:
    """Raises GateError when a training problem is in the evaluation set: exactly, in part or nearly."""
    held_out = {problem_id(row["problem"]) for row in evaluation}
    shared = [row for row in train if problem_id(row["problem"]) in held_out]
    if shared:
        raise GateError("labels", f"training problems are in the evaluation set. {_offenders('--prompt_data', shared)}")
    matches = find_matches(_problems(train, "--prompt_data"), _problems(evaluation, "--eval_dataset"))
    if matches:
        shown = "; ".join(
            f"{m.pool_text[:60]!r} and {m.other_text[:60]!r} ({m.kind}, {m.similarity:.2f})" for m in matches[:SHOWN]
        )
        raise GateError(
            "labels",
            f"{len(matches)} training problems stand in the evaluation set in another form: {shown}. Make the pool with "
            "filter_numinamath.py --exclude EVALUATION_SET.",
        )


def _problems(rows: list[dict[str, Any]], name: str) -> list[Problem]:
    return [Problem(problem_id(row["problem"]), row["problem"], name) for row in rows]


def check_length(args: argparse.Namespace, num_prompts: int) -> None:
    """Raises GateError when the run would train nothing, never at its learning rate, or by a schedule that has no end."""
    length = run_length(args, num_prompts)
    refill = args.zero_variance == "refill"
    if length.global_steps == 0:
        raise GateError(
            "labels",
            f"{num_prompts} prompts are less than one batch of {args.rollout_batch_size} (--rollout_batch_size): the run "
            "would train zero steps and save the untrained model",
        )
    if length.global_steps < MIN_GLOBAL_STEPS and not args.allow_short:
        raise GateError(
            "flags",
            f"the run has {length.global_steps} global steps{' for certain' if refill else ''}, fewer than {MIN_GLOBAL_STEPS}; "
            "pass --allow_short",
        )
    if refill and args.lr_scheduler not in OPEN_ENDED:
        raise GateError(
            "flags",
            f"--lr_scheduler {args.lr_scheduler} needs the number of steps, and --zero_variance refill may use up "
            f"{num_prompts} prompts in {length.global_steps} global steps or in several times as many; pass "
            "constant_with_warmup",
        )
    warmup = warmup_steps(args, length.optimizer_steps)
    if warmup > MAX_WARMUP_SHARE * length.optimizer_steps:
        raise GateError(
            "flags",
            f"warm-up takes {warmup} of {length.optimizer_steps} optimizer steps, more than {MAX_WARMUP_SHARE:.0%}; "
            "lower --lr_warmup_ratio",
        )
