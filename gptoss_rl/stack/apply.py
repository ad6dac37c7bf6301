"""Makes the installed OpenRLHF exactly pristine + `patches/series`, and proves that it is.

The patched package is rebuilt whole from pristine bytes (proven against the wheel's RECORD, and that against
`patches/BASE`) and swapped in by rename. The installed files are never written to: an installer may have
hard-linked them to its cache. Content decides what state the package is in, never a marker. Command line:

    python -m gptoss_rl.stack.apply [--check | --restore | --dry-run | --report PATH_OR_VERSION | --table]

`.<package>-patch-stack/` beside the package (a name Python cannot import) has the lock, the pristine copy and
the hashes of the trees that were swapped in. pip does not know it: `pip install --force-reinstall` puts the
pristine files back, leaves files that patches created, and that is recognised and patched again.
"""

import argparse
import contextlib
import ctypes
import errno
import fcntl
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from gptoss_rl.stack.installed import (
    APPLY,
    Digests,
    Installation,
    StackState,
    Survey,
    differing,
    digests_of,
    fingerprint,
    locate,
    read_tree,
    read_trees,
    read_zip,
    refuse_edited,
    survey,
)
from gptoss_rl.stack.series import PATCHES, Stack, load_stack, render_table, write_tables
from gptoss_rl.stack.unified_diff import PatchStackError, Tree

Say = Callable[[str], None]

LOCK_WAIT = 60.0  # seconds; an apply holds the lock for less than 3
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


# ---- One run at a time, and what a killed run left


@contextlib.contextmanager
def locked(inst: Installation, say: Say, shared: bool = False) -> Iterator[None]:
    """Holds the lock; `shared` for readers. The kernel drops it when the holder dies, however it dies."""
    path = inst.store / "lock"
    if shared and not path.exists():
        yield  # nothing was ever applied here, and a reader creates nothing
        return
    if not shared:
        inst.store.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for_lock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, path, say)
        if not shared:
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def _wait_for_lock(fd: int, kind: int, path: Path, say: Say) -> None:
    give_up = time.monotonic() + LOCK_WAIT
    told = False
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            writer = os.pread(fd, 20, 0).decode() or "unknown"
        if time.monotonic() > give_up:
            raise PatchStackError(
                f"another run has held {path} for {LOCK_WAIT:.0f} s (last writer: process {writer});"
                " wait for it or end it, then try again"
            )
        if not told:
            say(f"waiting for another run (last writer: process {writer}) to let go of {path}")
            told = True
        time.sleep(0.05)


def recover(inst: Installation, say: Say) -> None:
    """Under the lock: rolls a half-done fallback swap back and removes what killed runs left."""
    if inst.aside.exists():
        if inst.package.exists():
            inst.aside.rename(_work_folder(inst) / "old")
        else:
            inst.aside.rename(inst.package)
            say("an earlier run was killed between two renames: put the package back that it had set aside")
    for left in inst.store.glob("work-*"):
        # Best effort: on NFS a file that a process still has open cannot go yet; a later run takes it.
        shutil.rmtree(left, ignore_errors=True)


def _work_folder(inst: Installation) -> Path:
    return Path(tempfile.mkdtemp(prefix="work-", dir=inst.store))


# ---- Swapping


def exchange(one: Path, other: Path) -> bool:
    """Atomically exchanges two folders; False where kernel, C library or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # glibc before 2.28
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def write_tree(tree: Tree, root: Path, mtime: int) -> None:
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (mtime, mtime))


def _swap(inst: Installation, tree: Tree, have: Digests, keep_old: bool = False) -> None:
    """Puts `tree` in the package's place. `keep_old` leaves the old one in the store as `discarded/`."""
    work = _work_folder(inst)
    # Python trusts a .pyc whose recorded time and size match the source. The new files are newer than all old
    # ones, so bytecode of the old stack (in PYTHONPYCACHEPREFIX, or written late by a process that is still
    # running) never matches.
    old_times = [int((inst.site / name).lstat().st_mtime) for name in have]
    write_tree(tree, work, max([int(time.time()), *(when + 1 for when in old_times)]))
    new, old = work / inst.base.package, work / "old"
    if not tree or digests_of(read_tree(new)) != digests_of(tree):
        raise PatchStackError(f"{new} does not read back as it was written; the package is as it was")
    _remember(inst, have, digests_of(tree), work)
    if not inst.package.exists():
        new.rename(inst.package)
    elif exchange(new, inst.package):
        new.rename(old)
    else:
        inst.package.rename(inst.aside)  # from here to the next rename there is no package: `recover` mends that
        new.rename(inst.package)
        inst.aside.rename(old)
    if keep_old and old.exists():
        shutil.rmtree(inst.store / "discarded", ignore_errors=True)
        old.rename(inst.store / "discarded")
    shutil.rmtree(work, ignore_errors=True)


def _remember(inst: Installation, have: Digests, want: Digests, work: Path) -> None:
    """Before the swap, so that a run killed after it leaves a tree that is known. Two trees are enough."""
    trees = {key: tree for key, tree in read_trees(inst).items() if key == fingerprint(have)}
    trees[fingerprint(want)] = want
    temporary = work / "trees.json"
    temporary.write_text(json.dumps(trees, indent=0))
    temporary.replace(inst.trees_file)


def _store_pristine(inst: Installation, pristine: Tree) -> None:
    with contextlib.suppress(FileNotFoundError, zipfile.BadZipFile, zlib.error):
        if read_zip(inst.pristine_zip) == pristine:
            return
    work = _work_folder(inst)
    with zipfile.ZipFile(work / "pristine.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(pristine.items()):
            archive.writestr(name, content)
    (work / "pristine.zip").replace(inst.pristine_zip)
    work.rmdir()


def compile_tree(tree: Tree) -> None:
    """Compiles every file in memory.

    Raises:
        PatchStackError: names the file and the line that do not compile.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # upstream's own invalid escapes
        for name, content in tree.items():
            if not name.endswith(".py"):
                continue
            try:
                compile(content, name, "exec", dont_inherit=True)
            except (SyntaxError, ValueError) as error:  # ValueError: a null byte
                raise PatchStackError(f"with the whole series applied, {name} does not compile: {error}") from error


@contextlib.contextmanager
def _explained(inst: Installation) -> Iterator[None]:
    """Turns the operating system's refusals into a sentence with a remedy; the package is unchanged then."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "run as the owner of this environment, or make your own with setup_env.sh"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free 10 MB there, then run it again"
        elif error.errno == errno.EXDEV:
            # Overlay file systems do not rename a folder of a lower layer; a reinstall makes it anew.
            remedy = f"in a container, patch in the layer that installs the package, or run: {inst.reinstall}"
        else:
            raise
        raise PatchStackError(f"cannot change {inst.package} ({error.strerror}): {remedy}") from error


# ---- What the command line and the launch gate call


def apply(site: Path | None = None, patches: Path = PATCHES, say: Say = print) -> StackState:
    """Makes the installed package pristine + series; does nothing when it is.

    Raises:
        PatchStackError: it is not a package to patch, or a patch does not apply; it is unchanged then.
    """
    started = time.monotonic()
    stack = load_stack(patches)
    inst = locate(stack.base, site)
    with _explained(inst), locked(inst, say):
        recover(inst, say)
        found = survey(inst, stack)
        refuse_edited(inst, found)
        if found.state.status == "applied":
            say(f"{found.state}: nothing to do")
            return found.state
        compile_tree(found.target)
        _store_pristine(inst, found.pristine)
        _swap(inst, found.target, found.have)
        state = survey(inst, stack).state
    say(f"{state}: it was {found.state.status}, {time.monotonic() - started:.2f} s")
    return state


def restore(site: Path | None = None, patches: Path = PATCHES, say: Say = print) -> None:
    """Puts the pristine package back, whatever is there now. A tree that is not ours is kept in the store.

    Raises:
        PatchStackError: there is no pristine copy to put back.
    """
    stack = Stack(load_stack(patches).base, ())  # a series that does not apply must not stand in the way
    inst = locate(stack.base, site)
    with _explained(inst), locked(inst, say):
        recover(inst, say)
        found = survey(inst, stack)
        if found.have == inst.record:
            say(f"{inst.base} in {inst.site} is pristine: nothing to do")
            return
        edited = found.state.status == "edited"
        if not found.pristine:
            refuse_edited(inst, found)
        _swap(inst, found.pristine, found.have, keep_old=edited)
    say(f"{inst.base} in {inst.site} is pristine again")
    if edited:
        names = ", ".join(found.differing)
        say(f"what was there is kept in {inst.store / 'discarded'}; it had {names}")


def look(stack: Stack, site: Path | None, say: Say) -> tuple[Installation, Survey]:
    """The survey, without writing anything but to mend a swap that was killed half-way."""
    inst = locate(stack.base, site)
    with locked(inst, say, shared=True):
        # Under the lock no live run is between its renames: a gap seen here was left by a dead one.
        gap = inst.aside.exists() and not inst.package.exists()
    if gap:
        with _explained(inst), locked(inst, say):
            recover(inst, say)
    with locked(inst, say, shared=True):
        return inst, survey(inst, stack)


def check_stack(site: Path | None = None, patches: Path = PATCHES) -> StackState:
    """The launch gate: returns only if what Python imports is, byte for byte, pristine + series.

    Raises:
        PatchStackError: it is not; the sentence says what it is, and the remedy.
    """
    inst, found = look(load_stack(patches), site, _to_stderr)
    refuse_edited(inst, found)
    if found.state.status != "applied":
        what = "not patched" if found.state.status == "pristine" else "patched with an older version of this series"
        raise PatchStackError(f"{inst.base} in {inst.site} is {what}: {APPLY}")
    if site is None:
        spec = importlib.util.find_spec(inst.base.package)  # finds without importing
        origin = Path(spec.origin or "").resolve() if spec else None
        if origin != inst.package / "__init__.py":
            raise PatchStackError(
                f"Python would import {inst.base.package} from {origin}, not from {inst.package}:"
                " leave that folder, or take it out of PYTHONPATH"
            )
    return found.state


def stack_fingerprint(site: Path | None = None, patches: Path = PATCHES) -> str:
    """sha256 over the installed tree as it is, whatever it is (for `environment.json`)."""
    inst = locate(load_stack(patches).base, site)
    with locked(inst, _to_stderr, shared=True):
        return fingerprint(digests_of(read_tree(inst.package)))


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def dry_run(site: Path | None = None, patches: Path = PATCHES, say: Say = print) -> None:
    """Builds and compiles the stack in memory and says what `apply` would do."""
    stack = load_stack(patches)
    inst, found = look(stack, site, say)
    refuse_edited(inst, found)
    compile_tree(found.target)
    touched: dict[str, list[str]] = {}
    for patch in stack.patches:
        for file in patch.files:
            counts = f"{patch.name} +{file.count(b'+')} -{file.count(b'-')}"
            touched.setdefault(file.path, []).append(counts)
    for path, by in sorted(touched.items()):
        say(f"{path}: {', '.join(by)}")
    change = differing(found.have, digests_of(found.target))
    say(f"installed: {found.state.status}; {len(touched)} files patched and all of them compile")
    say(f"apply would change {len(change)} files" if change else "apply would do nothing")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="apply_patches.sh",
        description="Make the installed OpenRLHF pristine + patches/series (the default).",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="exit 0 only if the package is exactly that")
    mode.add_argument("--restore", action="store_true", help="put the pristine package back")
    mode.add_argument("--dry-run", action="store_true", help="build and compile, say what would change")
    mode.add_argument("--report", metavar="PATH_OR_VERSION", help="how each hunk fares on another folder, wheel or version")
    mode.add_argument("--table", action="store_true", help="print the table of patches (Markdown)")
    mode.add_argument("--write-table", action="store_true", help="write it into patches/README.md")
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)  # another site-packages
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except PatchStackError as error:
        print(f"apply_patches: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    if args.report:
        from gptoss_rl.stack.report import report  # difflib and pip are for this mode only

        return report(args.report, load_stack())
    if args.table:
        print(render_table(load_stack()))
    elif args.write_table:
        for path in write_tables(load_stack()):
            print(f"wrote {path}")
    elif args.check:
        print(check_stack(args.target))
    elif args.restore:
        restore(args.target)
    elif args.dry_run:
        dry_run(args.target)
    else:
        apply(args.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
