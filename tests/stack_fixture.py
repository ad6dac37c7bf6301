"""A small installed package and patch stacks for it, for the tests of the patch machinery."""

import base64
import difflib
import hashlib
import zipfile
from pathlib import Path

from gptoss_rl.stack.installed import digests_of, fingerprint
from gptoss_rl.stack.unified_diff import Tree

PACKAGE, VERSION = "fakelib", "1.0"
HEADER = """\
Subject: fakelib: change what it says

It says the wrong thing.

Reason: fix
Behaviour: as upstream when off
Forwarded: no
Drop-When: fakelib >= 2
Test: tests/test_patch_stack.py::test_apply_makes_the_package_pristine_plus_series
"""


def module(stack: str, name: str) -> bytes:
    """A module that says which stack it is from; the same size for stack names of the same length."""
    filler = "".join(f"def {name}_{n}():\n    return {n}\n\n\n" for n in range(10))
    return f'{filler}STACK = "{stack}"\n\n\n{filler}'.encode()


def tree(stack: str) -> Tree:
    """The whole package in one of its versions; every module of it carries the stack's name."""
    files = {f"{PACKAGE}/__init__.py": b""}
    files |= {f"{PACKAGE}/{name}.py": module(stack, name) for name in ("alpha", "beta", "gamma")}
    files |= {f"{PACKAGE}/sub/__init__.py": b"", f"{PACKAGE}/sub/delta.py": module(stack, "delta")}
    return files


PRISTINE = tree("base")
# "new1" takes two patches, creates a file and deletes one, so that a mixture with any other tree is visible.
HALF = {**PRISTINE, f"{PACKAGE}/alpha.py": module("half", "alpha")}
NEW1 = {**tree("new1"), f"{PACKAGE}/extra.py": module("new1", "extra")}
del NEW1[f"{PACKAGE}/gamma.py"]
NEW2 = {**tree("new2"), f"{PACKAGE}/extra.py": module("new2", "extra")}


def record_of(files: Tree) -> str:
    """RECORD as pip writes it, with the bytecode that it compiled."""
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    lines.append(f"{PACKAGE}/__pycache__/alpha.cpython-311.pyc,,")
    return "\n".join([*lines, f"{PACKAGE}-{VERSION}.dist-info/RECORD,,", ""])


def write_files(root: Path, files: Tree) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def make_site(root: Path, files: Tree = PRISTINE) -> Path:
    """A site-packages folder with the package installed."""
    site = root / "site-packages"
    write_files(site, files)
    write_files(site, {f"{PACKAGE}-{VERSION}.dist-info/RECORD": record_of(files).encode()})
    return site


def make_wheel(folder: Path, files: Tree = PRISTINE) -> Path:
    info = f"{PACKAGE}-{VERSION}.dist-info"
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    wheel = folder / f"{PACKAGE}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {**files, **meta}.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", record_of({**files, **meta}))
    return wheel


def diff(before: Tree, after: Tree) -> str:
    out: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        sides = [before.get(name), after.get(name)]
        if sides[0] == sides[1]:
            continue
        labels = [f"{side}/{name}" if content is not None else "/dev/null" for side, content in zip("ab", sides, strict=True)]
        texts = [(content or b"").decode().splitlines(keepends=True) for content in sides]
        out += difflib.unified_diff(*texts, *labels)
    return "".join(out)


def make_patches(folder: Path, *steps: tuple[str, Tree], pristine: Tree = PRISTINE) -> Path:
    """A patches/ folder: each step is a patch's name and the tree after it."""
    folder.mkdir(parents=True)
    pin = fingerprint(digests_of(pristine))
    (folder / "BASE").write_text(f"package: {PACKAGE}\nversion: {VERSION}\ntree-sha256: {pin}\n")
    (folder / "series").write_text("# all of them\n" + "".join(f"{name}\n" for name, _ in steps))
    before = pristine
    for name, after in steps:
        (folder / name).write_text(f"{HEADER}\n{diff(before, after)}")
        before = after
    return folder


def stack_one(folder: Path) -> Path:
    return make_patches(folder, ("half.patch", HALF), ("rest.patch", NEW1))


def stack_two(folder: Path) -> Path:
    return make_patches(folder, ("other.patch", NEW2))
