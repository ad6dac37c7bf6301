"""`data/README.md`: what the data files are and where they come from, from their manifests."""

import os
from pathlib import Path
from typing import Any

from gptoss_rl.data.contamination import KINDS
from gptoss_rl.data.files import README, DataError, manifest_faults, manifest_path, read_manifest
from gptoss_rl.data.sources import SOURCES

INTRODUCTION = """\
# Data

Written by `python -m gptoss_rl.data readme` from the manifests (`*.meta.json`) beside the files; do not edit.

    python -m gptoss_rl.data fetch
    python build_ood_1000.py
    python filter_numinamath.py --exclude data/math45_eval.jsonl data/probe_set_*ood.jsonl data/aime_eval.jsonl
    python build_ood_1000.py --pool data/sft_rl_pool.jsonl --active data/sft_rl_pool_3200.jsonl
    python -m gptoss_rl.data verify

Every row has `id` (of the problem's text), `input`, `label` and `source`; the launch gate refuses a file that is not what its
manifest says, and a training file that shares a problem with the evaluation set in any form. Training files are kept apart from
evaluation sets; evaluation sets are not kept apart from each other (`probe_set_1000_ood` draws on `math45_eval`, and
`probe_set_200_ood` has variants of problems of both), so scores on two of them are not independent.
"""

UNCHECKED = "It was compared with no evaluation set (`--exclude none`).\n"


def write_readme(folder: Path) -> Path:
    """Write FOLDER/README.md; a damaged manifest is named in it."""
    path = folder / README
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(readme(folder), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def readme(folder: Path, new: dict[str, dict[str, Any]] | None = None) -> str:
    """The text for a folder; without files it says how to make them.

    Args:
        new: file name -> the manifest of a file that is about to be put there.
    """
    manifests, damaged = dict(new or {}), []
    for path in sorted(folder.glob("*.jsonl")):
        if path.name in manifests or not manifest_path(path).is_file():
            continue
        try:
            manifest = read_manifest(path)
        except DataError as error:
            damaged.append(f"- {error}")
            continue
        faults = manifest_faults(manifest)
        damaged += [f"- {path}: {fault}" for fault in faults]
        manifests |= {} if faults else {path.name: manifest}
    ordered = [manifests[name] for name in sorted(manifests)]
    parts = [INTRODUCTION, sources_part()]
    parts.append(files_part(ordered) if ordered else "## Files\n\nNone has been made here yet.\n")
    parts += [pool_part(manifest) for manifest in ordered if manifest.get("role") == "pool"]
    if damaged:
        parts.append("## Damaged\n\n" + "\n".join(damaged) + "\n")
    return "\n".join(parts)


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---:" if name in ("rows", *KINDS) else "---" for name in head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def sources_part() -> str:
    rows = [(f"`{s.name}`", s.repository, f"`{s.revision[:12]}`", f"`{s.pattern}`") for s in SOURCES.values()]
    return "## Sources\n\n" + table(("name", "dataset", "revision", "files"), rows)


def files_part(manifests: list[dict[str, Any]]) -> str:
    rows = [
        (f"`{m['file']}`", m.get("role", ""), f"{m['rows']:,}", m.get("seed", ""), f"`{m['sha256'][:12]}`",
         m.get("made_by", ""), f"`{(m.get('commit') or 'unknown')[:12]}`")
        for m in manifests
    ]  # fmt: skip
    return "## Files\n\n" + table(("file", "role", "rows", "seed", "sha256", "made by", "at commit"), rows)


def pool_part(manifest: dict[str, Any]) -> str:
    reasons = sorted(manifest.get("rejected", {}).items(), key=lambda item: -item[1])
    inputs = [
        (f"`{Path(name).name}`", f"`{digest[:12]}`", f"`{manifest.get('revisions', {}).get(Path(name).name) or 'local file'}`")
        for name, digest in manifest.get("inputs", {}).items()
    ]
    matches = [
        (f"`{name}`", *(kinds.get(kind, 0) for kind in KINDS)) for name, kinds in manifest.get("contamination", {}).items()
    ]
    removed = "\nRemoved because it stands in an evaluation set (in two sets: counted in both):\n\n"
    return (
        f"## How `{manifest['file']}` was made\n\n"
        + table(("input", "sha256", "revision"), inputs)
        + f"\nOf {manifest.get('rows_read', 0):,} rows read, {manifest['rows']:,} are kept.\n\n"
        + table(("rejected because", "rows"), [(reason, f"{count:,}") for reason, count in reasons])
        + (removed + table(("set", *KINDS), matches) if matches else "\n" + UNCHECKED)
    )
