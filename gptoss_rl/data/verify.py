"""Whether the prompt files of a folder are what their manifests say, and training is apart from evaluation."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptoss_rl.data.contamination import Problem, find_matches
from gptoss_rl.data.files import DataError, manifest_faults, read_lines, read_manifest, sha256
from gptoss_rl.data.normalise import normalise
from gptoss_rl.prompts import problem_id
from reward_func_em import parse_label

REQUIRED = ("id", "input", "label", "source")
WITHOUT_MANIFEST = ("tiny_train.jsonl", "tiny_eval.jsonl")  # make_tiny_gptoss.py's sums, made by rule and not from a source
# Whose rows may stand in whose: the in-distribution set is drawn from the pool, and only the active subset must not touch it.
APART = {
    "train": ("evaluation", "math45_eval", "in_distribution"),
    "pool": ("evaluation", "math45_eval"),
    "math45": ("evaluation", "math45_eval"),
}


def verify_file(path: Path) -> list[str]:
    """What is wrong with a prompt file; nothing when it is what its manifest says."""
    try:
        said = read_manifest(path)
        problems = [f"{path}: {fault}" for fault in manifest_faults(said)]
        if sha256(path) != said["sha256"]:
            problems.append(f"{path} is not the file its manifest describes (sha256)")
        rows = read_lines(path) if said["rows"] else []
    except DataError as error:
        return [str(error)]
    if len(rows) != said["rows"]:
        problems.append(f"{path} has {len(rows)} rows, its manifest says {said['rows']}")
    if said.get("role") == "report":
        return problems
    for number, row in enumerate(rows, start=1):
        problems += [f"{path}, row {number}: {fault}" for fault in row_faults(row, said.get("integer_labels", True))]
    # MATH has problems that stand in it twice; the manifest of a set that is fixed by its number of rows says which.
    duplicates = said.get("duplicates")
    known = duplicates if isinstance(duplicates, list) else []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        key = normalise(row["input"]) if isinstance(row.get("input"), str) else None
        if key in seen and row.get("id") not in known:
            problems.append(f"{path}, row {number}: {row.get('id')} stands there twice")
        seen.add(key)
    return problems


def row_faults(row: dict[str, Any], integer_labels: bool) -> Iterator[str]:
    """What is wrong with one row of a prompt file."""
    lacking = [key for key in REQUIRED if key not in row]
    if lacking:
        yield f"no {', '.join(lacking)}"
        return
    if not isinstance(row["input"], str) or not row["input"].strip():
        yield f"input is no text ({row['input']!r})"
    elif row["id"] != problem_id(row["input"]):
        yield f"id {row['id']} is not its problem's"
    if not isinstance(row["label"], str) or not row["label"].strip():
        yield f"label is no text ({row['label']!r})"
    elif integer_labels:
        try:
            parse_label(row["label"])
        except ValueError as error:
            yield str(error)


def overlap(train: Path, evaluation: Path) -> list[str]:
    """Problems of `train` that stand in `evaluation`, exactly, in part or nearly."""

    def problems(path: Path) -> list[Problem]:
        return [Problem(row["id"], row["input"], path.name) for row in read_lines(path)]

    matches = find_matches(problems(train), problems(evaluation))
    return [f"{train.name} {m.pool_id} stands in {m.other_set} as {m.other_id} ({m.kind}, {m.similarity:.2f})" for m in matches]


def outside(active: Path, pool: Path) -> list[str]:
    """Rows of the active subset that are not in the pool as they stand."""
    rows = {json.dumps(row, sort_keys=True) for row in read_lines(pool)}
    lacking = [row["id"] for row in read_lines(active) if json.dumps(row, sort_keys=True) not in rows]
    return (
        [f"{active.name}: {len(lacking)} rows are not in {pool.name}, first {lacking[0]}; make both again"] if lacking else []
    )


def missing_files(folder: Path) -> list[str]:
    """Files that are gone: their manifest is still here, or one that was made together with them."""
    missing = {}
    for beside in sorted(folder.glob("*.meta.json")):
        path = beside.with_name(beside.name.removesuffix(".meta.json") + ".jsonl")
        if not path.is_file():
            missing[path.name] = f"{path} is missing, its manifest is there; make it again"
            continue
        try:
            together = read_manifest(path).get("made_with")
        except DataError:  # verify_file names it
            continue
        for name in filter(lambda n: isinstance(n, str), together if isinstance(together, list) else ()):
            if not (folder / name).is_file():
                missing.setdefault(name, f"{folder / name} is missing, it was made together with {path.name}; make it again")
    return list(missing.values())


def compare_roles(files: dict[str, list[Path]], say: Callable[[str], None]) -> list[str]:
    """Training files against evaluation sets, and the active subset against the pool it was drawn from."""
    problems = []
    for role, others in APART.items():
        pairs = [(a, b) for a in files.get(role, []) for other in others for b in files.get(other, [])]
        for train, evaluation in pairs:
            found = overlap(train, evaluation)
            say(f"{train.name} x {evaluation.name}: {f'{len(found)} in common' if found else 'disjoint'}")
            problems += found
    for active in files.get("train", []):
        for pool in files.get("pool", []):
            found = outside(active, pool)
            say(found[0] if found else f"{active.name} is a part of {pool.name}")
            problems += found
    return problems


def verify_folder(folder: Path, say: Callable[[str], None]) -> list[str]:
    """Check every prompt file, that none is missing, and what they have in common; returns what is wrong.

    Links are followed to files of other folders; one to a file of this folder is that file's second name.

    Raises:
        DataError: there is no such file.
    """
    paths = [path for path in sorted(folder.glob("*.jsonl")) if path.name not in WITHOUT_MANIFEST]
    paths = [path for path in paths if not (path.is_symlink() and path.resolve().parent == folder.resolve() and path.exists())]
    problems = missing_files(folder)
    if not paths and not problems:
        raise DataError(f"{folder} holds no prompt file; make them with build_ood_1000.py and filter_numinamath.py")
    for problem in problems:
        say(problem)
    sound: dict[str, list[Path]] = {}
    for path in paths:
        found = verify_file(path.resolve())
        say(f"{path.name:32s} {'ok' if not found else found[0]}")
        problems += found
        if not found:
            sound.setdefault(read_manifest(path.resolve())["role"], []).append(path)
    if len(paths) > sum(map(len, sound.values())):
        say("the files with a fault were compared with nothing")
    return problems + compare_roles(sound, say)
