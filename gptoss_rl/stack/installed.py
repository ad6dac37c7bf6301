"""What is installed: the package's place, its wheel's RECORD, and which of the known trees its content is.

Nothing here writes. Standard library only, like everything `apply_patches.sh` runs.
"""

import csv
import hashlib
import json
import os
import sysconfig
import zipfile
import zlib
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from pathlib import Path

from gptoss_rl.stack.series import Base, Stack
from gptoss_rl.stack.unified_diff import PatchStackError, Tree

Digests = dict[str, str]  # path relative to site-packages -> sha256 in hex

APPLY = "bash apply_patches.sh"
NOT_A_FILE = b"<not a regular file>"


@dataclass(frozen=True)
class StackState:
    """What is installed."""

    status: str  # "applied", "pristine", "older" (an earlier version of the series) or "edited"
    base: Base
    site: Path
    patches: tuple[str, ...]
    fingerprint: str  # of the installed content

    def __str__(self) -> str:
        tree = self.fingerprint[:12]
        return f"{self.base} in {self.site} is pristine + {len(self.patches)} patches (tree {tree})"


@dataclass(frozen=True)
class Installation:
    """One site-packages folder that holds the package."""

    base: Base
    site: Path
    record: Digests  # the package's files as the wheel's RECORD lists them, proven against BASE

    @property
    def package(self) -> Path:
        return self.site / self.base.package

    @property
    def store(self) -> Path:
        return self.site / f".{self.base.package}-patch-stack"

    @property
    def aside(self) -> Path:
        """Where the old package waits between the two renames of the fallback swap: its journal."""
        return self.store / "aside"

    @property
    def pristine_zip(self) -> Path:
        return self.store / f"pristine-{self.base.version}.zip"

    @property
    def trees_file(self) -> Path:
        return self.store / "trees.json"

    @property
    def reinstall(self) -> str:
        return f"pip install --force-reinstall --no-deps {self.base.package}=={self.base.version}"


@dataclass(frozen=True)
class Survey:
    state: StackState
    have: Digests
    pristine: Tree  # empty when it is neither installed nor stored; the status is "edited" then
    target: Tree  # pristine + series; empty when `pristine` is
    differing: tuple[str, ...]  # for "edited": the files, each with what is wrong


def fingerprint(digests: Digests) -> str:
    """sha256 over the sorted "<path> <sha256>" lines."""
    return hashlib.sha256("".join(f"{p} {d}\n" for p, d in sorted(digests.items())).encode()).hexdigest()


def digests_of(tree: Tree) -> Digests:
    return {path: hashlib.sha256(content).hexdigest() for path, content in tree.items()}


def read_tree(package: Path) -> Tree:
    """Every file below `package` but what Python itself writes (`__pycache__`).

    A `.pyc` elsewhere, a link to a folder or a pipe is listed as well: Python can import from some of these.
    """
    tree: Tree = {}
    for folder, folders, files in os.walk(package):
        folders[:] = [name for name in folders if name != "__pycache__"]
        links = [name for name in folders if Path(folder, name).is_symlink()]  # os.walk does not enter these
        for path in (Path(folder, name) for name in files + links):
            name = path.relative_to(package.parent).as_posix()
            tree[name] = path.read_bytes() if path.is_file() else NOT_A_FILE
    return tree


# ---- Which package this is about


def locate(base: Base, site: Path | None = None) -> Installation:
    """The installation in `site` (default: this Python's own site-packages).

    Raises:
        PatchStackError: not installed, another version, editable, a link, or not the wheel that BASE pins.
    """
    site = (site or Path(sysconfig.get_path("purelib"))).resolve()
    name = base.package
    infos = sorted(site.glob(f"{name}-*.dist-info"))
    _refuse_editable(name, site, infos)
    install = f"pip install --no-deps {name}=={base.version}"
    if not infos:
        raise PatchStackError(f"{name} is not installed in {site}: {install}")
    if len(infos) > 1:
        found = ", ".join(info.name for info in infos)
        raise PatchStackError(f"{site} has more than one {name} ({found}): pip uninstall {name}, then {install}")
    version = infos[0].name.removeprefix(f"{name}-").removesuffix(".dist-info")
    if version != base.version:
        raise PatchStackError(
            f"{name} {version} is installed, the patches are for {base.version}: {install}"
            f" (or see what a port needs: {APPLY} --report {version})"
        )
    record = _read_record(infos[0] / "RECORD", name)
    inst = Installation(base, site, record)
    if fingerprint(record) != base.tree_sha256:
        raise PatchStackError(
            f"{infos[0] / 'RECORD'} does not list the files of {base} that patches/BASE pins (tree-sha256"
            f" {base.tree_sha256[:12]}, RECORD gives {fingerprint(record)}): {inst.reinstall}"
        )
    return inst


def _refuse_editable(name: str, site: Path, infos: list[Path]) -> None:
    where = None
    for info in infos:
        url = info / "direct_url.json"
        if url.is_file() and json.loads(url.read_text()).get("dir_info", {}).get("editable"):
            where = url
    if (site / f"{name}.egg-link").is_file():
        where = site / f"{name}.egg-link"
    for pth in sorted(site.glob("*.pth")):
        for line in pth.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip() and not line.startswith("import") and (site / line.strip() / name / "__init__.py").is_file():
                where = pth
    if (site / name).is_symlink():
        where = site / name
    if where is not None:
        raise PatchStackError(
            f"{name} is an editable install ({where}), and a working tree is not patched:"
            f" pip uninstall {name}, then install the released wheel"
        )


def _read_record(path: Path, package: str) -> Digests:
    # Not by importlib.metadata, which from Python 3.12 on leaves out files that are not there: one that was deleted would
    # not be missed.
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError as error:
        raise PatchStackError(f"{path} is missing, so nothing can prove what is installed: reinstall {package}") from error
    record: Digests = {}
    for name, digest, *_ in rows:
        # pip adds the .pyc files that it compiled, without a hash.
        if not name.startswith(f"{package}/") or "__pycache__" in name.split("/"):
            continue
        algorithm, _, value = digest.partition("=")
        if algorithm != "sha256":
            raise PatchStackError(f"{path} has no sha256 for {name}, so nothing can prove it: reinstall {package}")
        record[name] = urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
    return record


# ---- What state it is in


def survey(inst: Installation, stack: Stack) -> Survey:
    """Reads the installed tree and says which of the known trees it is."""
    installed = read_tree(inst.package)
    have = digests_of(installed)
    pristine = _pristine_tree(inst, installed, have)
    target = stack.apply(pristine) if pristine else {}
    want = digests_of(target)
    ours = read_trees(inst)
    # What a force-reinstall leaves behind because RECORD never listed it: only files that this stack created.
    created = {item for tree in (want, *ours.values()) for item in tree.items()}
    extra = set(have.items()) - set(inst.record.items())
    if not pristine:
        status = "edited"
    elif have == want:
        status = "applied"
    elif _holds(have, inst.record) and extra <= created:
        status = "pristine"
    elif fingerprint(have) in ours:
        status = "older"
    else:
        status = "edited"
    known = [tree for tree in (inst.record, want, *ours.values()) if tree]
    # Name the files against the tree that comes closest: whoever edited one line wants to read one name.
    nearest = min((differing(have, tree) for tree in known), key=len)
    names = tuple(patch.name for patch in stack.patches)
    state = StackState(status, inst.base, inst.site, names, fingerprint(have))
    return Survey(state, have, pristine, target, tuple(nearest if status == "edited" else ()))


def _holds(have: Digests, wanted: Digests) -> bool:
    return all(have.get(path) == digest for path, digest in wanted.items())


def differing(have: Digests, want: Digests) -> list[str]:
    """The files in which two trees differ, each with what `have` has to show there."""
    paths = sorted(path for path in have.keys() | want.keys() if have.get(path) != want.get(path))
    return [f"{p} ({'added' if p not in want else 'missing' if p not in have else 'changed'})" for p in paths]


def _pristine_tree(inst: Installation, installed: Tree, have: Digests) -> Tree:
    if _holds(have, inst.record):
        return {path: installed[path] for path in inst.record}
    if not inst.pristine_zip.is_file():
        return {}
    try:
        tree = read_zip(inst.pristine_zip)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise PatchStackError(f"{inst.pristine_zip} cannot be read ({error}): {inst.reinstall}") from error
    if digests_of(tree) != inst.record:
        raise PatchStackError(f"{inst.pristine_zip} is not what RECORD lists: {inst.reinstall}")
    return tree


def read_zip(path: Path) -> Tree:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_trees(inst: Installation) -> dict[str, Digests]:
    """Fingerprint -> hashes of the trees that were swapped in. Damage only makes an older one unknown."""
    try:
        trees = json.loads(inst.trees_file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return {key: tree for key, tree in trees.items() if fingerprint(tree) == key}


def refuse_edited(inst: Installation, found: Survey) -> None:
    """Raises:
    PatchStackError: the package is neither pristine nor from this series; names the files and the remedy.
    """
    if found.state.status != "edited":
        return
    shown = ", ".join(found.differing[:8]) + (", ..." if len(found.differing) > 8 else "")
    remedy = f"{APPLY} --restore (or {inst.reinstall})" if found.pristine else inst.reinstall
    raise PatchStackError(
        f"{inst.base} in {inst.site} was edited by hand, {len(found.differing)} files are neither pristine"
        f" nor from this series: {shown}. Save what you need, then: {remedy}"
    )
