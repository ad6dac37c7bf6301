"""`python -m gptoss_rl.data verify`: every prompt file under data/ against its manifest, and training against evaluation."""

import argparse
import json
import sys
from pathlib import Path

from gptoss_rl.data.files import manifest_path, overlap, verify_file


def roles(folder: Path) -> dict[str, list[Path]]:
    """Prompt files with a manifest, by their role."""
    found: dict[str, list[Path]] = {"train": [], "evaluation": []}
    for path in sorted(folder.glob("*.jsonl")):
        if manifest_path(path).is_file():
            role = json.loads(manifest_path(path).read_text()).get("role", {})
            found.setdefault(role.get(path.name, "evaluation") if isinstance(role, dict) else role, []).append(path)
    return found


def in_distribution(path: Path) -> bool:
    with path.open(encoding="utf-8") as lines:
        return bool(json.loads(next(lines)).get("in_distribution"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gptoss_rl.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser(
        "verify", help="hashes, schema, labels, duplicates, disjointness; exit 1 when anything is wrong"
    )
    verify.add_argument("folder", type=Path, nargs="?", default=Path("data"))
    args = parser.parse_args()
    by_role = roles(args.folder)
    if not any(by_role.values()):
        sys.exit(f"data: {args.folder} holds no prompt file with a manifest; make them with filter_numinamath.py")
    problems = []
    for path in (p for role in ("pool", "train", "evaluation", "math45") for p in by_role.get(role, [])):
        found = verify_file(path)
        print(f"{path.name:32s} {'ok' if not found else found[0]}")
        problems += found
    # The in-distribution set is drawn from the pool; only the active subset must not touch it.
    pairs = [(train, e) for train in by_role["train"] for e in by_role["evaluation"]]
    pairs += [(p, e) for p in by_role.get("pool", []) for e in by_role["evaluation"] if not in_distribution(e)]
    for train, evaluation in pairs:
        found = overlap(train, evaluation)
        print(f"{train.name} x {evaluation.name}: {f'{len(found)} in common' if found else 'disjoint'}")
        problems += found
    for problem in problems[:50]:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
