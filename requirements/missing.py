"""Prints the pins of the given sets that this Python does not have, one a line, for an installer to install.

It asks no index, so that setup_env.sh can finish without a network when all is there; uv and pip would ask one,
because they look at what packages ask for, and some ask for what they do not get (EXCEPTIONS in lock.py).

It also makes this Python forget packages that an interrupted install left half-done. An installer takes a package
for installed when its `*.dist-info` folder is there, and writes that folder along with the package: kill it, or fill
the disk, and the package stays incomplete for ever. Here a package is whole when every file of its RECORD is there
with the recorded size. Of one that is not, the `*.dist-info` folder is removed; the next install overwrites the files.

    .venv/bin/python requirements/missing.py requirements/cpu.txt requirements/dev.txt
"""

import csv
import re
import shutil
import sys
import sysconfig
from collections import Counter
from pathlib import Path

from lock import Pins, read_pins

# apply_patches.sh changes these files; once it has a store beside the package, it also is who proves them.
PATCHED = "openrlhf"
PATCH_STORE = f".{PATCHED}-patch-stack"

Record = dict[str, int | None]  # path relative to site-packages -> size in bytes, where one is recorded


def read_record(info: Path) -> Record | None:
    """What the package says that it consists of; None without a RECORD, which pip writes last."""
    try:
        text = (info / "RECORD").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return {row[0]: int(row[2]) if row[2:] and row[2] else None for row in csv.reader(text.splitlines()) if row}


def damage(site: Path, record: Record | None, shared: set[str], patched: bool) -> str | None:
    """What is wrong with a package, or None."""
    if record is None:
        return "no RECORD"
    for name, size in record.items():
        path = site / name
        if name.endswith(".pyc"):  # some wheels carry these; byte-compiling writes others over them
            continue
        if not path.is_file():
            return f"{name} is missing"
        # Installers rewrite the scripts of bin/; of a file that two packages ship, the later one's is there.
        if size is None or patched or name in shared or name.startswith(".."):
            continue
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def half_installed(site: Path) -> dict[Path, str]:
    """The `*.dist-info` folders of incomplete packages, each with what is wrong."""
    records = {info: read_record(info) for info in sorted(site.glob("*.dist-info"))}
    owners = Counter(name for record in records.values() for name in record or {})
    shared = {name for name, count in owners.items() if count > 1}
    found = {}
    for info, record in records.items():
        patched = info.name.startswith(f"{PATCHED}-") and (site / PATCH_STORE).is_dir()
        problem = damage(site, record, shared, patched)
        if problem:
            found[info] = problem
    return found


def installed(site: Path) -> Pins:
    """Normalised name -> version of the packages in `site`, as the names of their folders say."""
    pairs = (info.name.removesuffix(".dist-info").rsplit("-", 1) for info in site.glob("*.dist-info"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def main(sets: list[str]) -> int:
    site = Path(sysconfig.get_path("purelib"))
    for info, problem in half_installed(site).items():
        print(f"half-installed, to be done again: {info.name.removesuffix('.dist-info')} ({problem})", file=sys.stderr)
        shutil.rmtree(info)
    have = installed(site)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = {pin for path in sets for pin in read_pins(Path(path), python).items()}
    for name, version in sorted(wanted):
        if have.get(name) != version:
            print(f"{name}=={version}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
