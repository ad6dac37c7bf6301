"""apply, check, restore and dry-run on a small package."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from stack_fixture import (
    HALF,
    NEW1,
    NEW2,
    PACKAGE,
    PRISTINE,
    diff,
    make_patches,
    make_site,
    stack_one,
    stack_two,
    write_files,
)

from gptoss_rl.stack import apply as patch_stack
from gptoss_rl.stack.apply import apply, check_stack, dry_run, restore, stack_fingerprint
from gptoss_rl.stack.installed import digests_of, fingerprint, read_tree
from gptoss_rl.stack.series import load_stack
from gptoss_rl.stack.unified_diff import PatchStackError

quiet = {"say": lambda text: None}


def installed(site: Path) -> dict[str, bytes]:
    return read_tree(site / PACKAGE)


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def test_apply_makes_the_package_pristine_plus_series(tmp_path):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    with pytest.raises(PatchStackError, match=r"is not patched: bash apply_patches\.sh"):
        check_stack(site, patches)
    state = apply(site, patches, **quiet)
    assert installed(site) == NEW1
    assert check_stack(site, patches) == state
    assert state.patches == ("half.patch", "rest.patch")
    assert stack_fingerprint(site, patches) == state.fingerprint == fingerprint(digests_of(NEW1))


def test_a_second_apply_touches_nothing(tmp_path):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    apply(site, patches, **quiet)
    before = snapshot(site / PACKAGE)
    said = []
    apply(site, patches, say=said.append)
    assert snapshot(site / PACKAGE) == before
    assert "nothing to do" in said[0]


def test_restore_puts_the_pristine_package_back(tmp_path):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    apply(site, patches, **quiet)
    restore(site, patches, **quiet)
    assert installed(site) == PRISTINE
    restore(site, patches, **quiet)
    assert installed(site) == PRISTINE


@pytest.mark.parametrize("patched", [False, True])
def test_check_and_dry_run_write_nothing(tmp_path, patched):
    site = make_site(tmp_path)
    one, two = stack_one(tmp_path / "one"), stack_two(tmp_path / "two")
    if patched:
        apply(site, one, **quiet)
    before = snapshot(site)
    said = []
    dry_run(site, one, say=said.append)
    with pytest.raises(PatchStackError):
        check_stack(site, two)
    assert snapshot(site) == before
    assert f"{PACKAGE}/alpha.py: half.patch +1 -1, rest.patch +1 -1" in said
    # four modules changed or created, one deleted
    assert said[-1] == ("apply would do nothing" if patched else "apply would change 5 files")


def test_an_installers_hard_linked_cache_is_not_written_through(tmp_path):
    # uv hard-links the installed files to its cache: writing into one would patch every other environment too
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    cached = tmp_path / "cached.py"
    os.link(site / PACKAGE / "alpha.py", cached)
    apply(site, patches, **quiet)
    restore(site, patches, **quiet)
    assert cached.read_bytes() == PRISTINE[f"{PACKAGE}/alpha.py"]
    assert cached.stat().st_nlink == 1


@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (
            {"fakelib/beta.py": b"edited = 1\n"},
            "1 files are neither pristine nor from this series: fakelib/beta.py (changed)",
        ),
        ({"fakelib/mine.py": b""}, "fakelib/mine.py (added)"),
        ({"fakelib/beta.py": None}, "fakelib/beta.py (missing)"),
        (
            {"fakelib/beta.pyc": b"sourceless"},
            "fakelib/beta.pyc (added)",
        ),  # outside __pycache__ it is importable
    ],
)
def test_a_hand_edited_package_is_refused_by_file(tmp_path, edit, named, patched):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    apply(site, patches, **quiet)
    if not patched:
        restore(site, patches, **quiet)
    for name, content in edit.items():
        (site / name).unlink(missing_ok=True)
        if content is not None:
            (site / name).write_bytes(content)
    before = installed(site)
    for action in (apply, dry_run):
        with pytest.raises(PatchStackError) as caught:
            action(site, patches, **quiet)
        assert "was edited by hand" in str(caught.value)
        assert named in str(caught.value)
        assert "apply_patches.sh --restore (or pip install --force-reinstall --no-deps fakelib==1.0)" in str(caught.value)
    with pytest.raises(PatchStackError, match="edited by hand"):
        check_stack(site, patches)
    assert installed(site) == before


def test_restore_keeps_what_was_edited(tmp_path):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    apply(site, patches, **quiet)
    (site / PACKAGE / "beta.py").write_text("edited = 1\n")
    said = []
    restore(site, patches, say=said.append)
    assert installed(site) == PRISTINE
    kept = site / f".{PACKAGE}-patch-stack" / "discarded"
    assert str(kept) in said[-1]
    assert (kept / "beta.py").read_text() == "edited = 1\n"


def test_a_folder_linked_into_the_package_is_seen(tmp_path):
    # Python imports through it, and os.walk does not go into it
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    apply(site, patches, **quiet)
    (site / PACKAGE / "linked").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(PatchStackError, match=r"fakelib/linked \(added\)"):
        check_stack(site, patches)


def test_a_deleted_package_is_never_taken_for_an_applied_one(tmp_path):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    shutil.rmtree(site / PACKAGE)
    with pytest.raises(PatchStackError, match="then: pip install --force-reinstall"):
        check_stack(site, patches)
    write_files(site, PRISTINE)
    apply(site, patches, **quiet)
    shutil.rmtree(site / PACKAGE)
    with pytest.raises(PatchStackError, match=r"fakelib/__init__\.py \(missing\)"):
        apply(site, patches, **quiet)
    restore(site, patches, **quiet)
    assert installed(site) == PRISTINE


def test_an_edit_before_the_first_apply_leaves_only_the_reinstall(tmp_path):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    (site / PACKAGE / "beta.py").write_text("edited = 1\n")
    for action in (apply, restore):
        with pytest.raises(PatchStackError, match=r"then: pip install --force-reinstall --no-deps fakelib==1\.0$"):
            action(site, patches, **quiet)
    assert (site / PACKAGE / "beta.py").read_text() == "edited = 1\n"


def test_an_older_series_is_rebuilt(tmp_path):
    site = make_site(tmp_path)
    old, new = stack_one(tmp_path / "old"), stack_two(tmp_path / "new")
    apply(site, old, **quiet)
    with pytest.raises(PatchStackError, match="patched with an older version of this series"):
        check_stack(site, new)
    apply(site, new, **quiet)
    assert installed(site) == NEW2
    apply(site, old, **quiet)
    assert installed(site) == NEW1
    check_stack(site, old)


def test_no_marker_speaks_for_an_edited_older_tree(tmp_path):
    site = make_site(tmp_path)
    old, new = stack_one(tmp_path / "old"), stack_two(tmp_path / "new")
    apply(site, old, **quiet)
    (site / PACKAGE / "beta.py").write_text("edited = 1\n")
    with pytest.raises(PatchStackError, match=r"1 files are neither .* fakelib/beta.py \(changed\)"):
        apply(site, new, **quiet)
    # nor does a damaged one for a file that no patch has created
    restore(site, old, **quiet)
    (site / PACKAGE / "mine.py").write_text("mine = 1\n")
    trees = site / f".{PACKAGE}-patch-stack" / "trees.json"
    known = json.loads(trees.read_text())
    trees.write_text(json.dumps({key: digests_of(installed(site)) for key in known}))
    with pytest.raises(PatchStackError, match=r"fakelib/mine.py \(added\)"):
        apply(site, new, **quiet)


def test_a_damaged_pristine_copy_is_refused(tmp_path):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    apply(site, patches, **quiet)
    store = site / f".{PACKAGE}-patch-stack" / "pristine-1.0.zip"
    good = store.read_bytes()
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        for name, content in NEW1.items():
            archive.writestr(name, content)
    # cut off, empty, a flipped byte in compressed data, and a sound archive of something else
    flipped = good[:150] + bytes([good[150] ^ 1]) + good[151:]
    for bad in (good[: len(good) // 2], b"", flipped, other.read_bytes()):
        store.write_bytes(bad)
        for action in (check_stack, lambda *a: restore(*a, **quiet)):
            with pytest.raises(PatchStackError, match=r"pristine-1\.0\.zip .*pip install --force-reinstall"):
                action(site, patches)
    assert installed(site) == NEW1
    # with the pristine files back in place it is made anew
    shutil.rmtree(site / PACKAGE)
    write_files(site, PRISTINE)
    apply(site, patches, **quiet)
    restore(site, patches, **quiet)
    assert installed(site) == PRISTINE


def test_a_record_other_than_the_pinned_one_is_refused(tmp_path):
    # both the file and its line in RECORD were changed: only BASE can tell
    site = make_site(tmp_path, {**PRISTINE, f"{PACKAGE}/beta.py": b"another = 1\n"})
    with pytest.raises(PatchStackError, match=r"RECORD does not list the files of fakelib 1\.0 that patches/BASE pins"):
        apply(site, stack_one(tmp_path / "patches"), **quiet)


def _editable(site: Path) -> None:
    (site / f"{PACKAGE}-1.0.dist-info/direct_url.json").write_text('{"url": "file:///src", "dir_info": {"editable": true}}')


def _pth(site: Path) -> None:
    shutil.move(site / PACKAGE, site.parent / "src" / PACKAGE)
    (site / "__editable__.fakelib-1.0.pth").write_text(f"{site.parent / 'src'}\n")


def _egg_link(site: Path) -> None:
    shutil.rmtree(site / f"{PACKAGE}-1.0.dist-info")
    (site / "fakelib.egg-link").write_text("/src\n.")


def _link(site: Path) -> None:
    shutil.move(site / PACKAGE, site.parent / PACKAGE)
    (site / PACKAGE).symlink_to(site.parent / PACKAGE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_editable, r"is an editable install \(.*direct_url\.json"),
        (_pth, r"is an editable install \(.*__editable__"),
        (_egg_link, r"is an editable install \(.*egg-link"),
        (_link, "is an editable install"),
        (
            lambda s: shutil.rmtree(s / "fakelib-1.0.dist-info"),
            "fakelib is not installed in .*pip install --no-deps fakelib==1.0",
        ),
        (
            lambda s: (s / "fakelib-1.0.dist-info").rename(s / "fakelib-1.1.dist-info"),
            "fakelib 1.1 is installed, the patches are for 1.0: .*--report 1.1",
        ),
        (lambda s: (s / "fakelib-1.1.dist-info").mkdir(), "more than one fakelib"),
        (lambda s: (s / "fakelib-1.0.dist-info/RECORD").unlink(), "RECORD is missing"),
        (
            lambda s: (s / "fakelib-1.0.dist-info/RECORD").write_text("fakelib/alpha.py,,\n"),
            "no sha256 for fakelib/alpha.py",
        ),
    ],
)
def test_what_is_not_a_package_to_patch_is_refused(tmp_path, change, message):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    (tmp_path / "src").mkdir()
    change(site)
    before = snapshot(site)
    for action in (lambda: apply(site, patches, **quiet), lambda: check_stack(site, patches)):
        with pytest.raises(PatchStackError, match=message):
            action()
    assert snapshot(site) == before


def test_an_unwritable_site_packages_is_refused():
    # root may write anywhere, so the test gives root up for a moment; pytest's own folder is closed to others
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        site, patches = make_site(Path(folder)), stack_one(Path(folder) / "patches")
        for path in Path(folder).rglob("*"):  # readable to others, whatever the umask is
            path.chmod(0o755 if path.is_dir() else 0o644)
        site.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(PatchStackError, match=r"cannot change .*Permission denied.*owner of this environment"):
                apply(site, patches, **quiet)
        finally:
            os.seteuid(user)
            site.chmod(0o755)
        assert installed(site) == PRISTINE


def test_a_patch_that_does_not_apply_or_compile_leaves_the_package_alone(tmp_path):
    site = make_site(tmp_path)
    moved = stack_one(tmp_path / "moved")
    text = (moved / "half.patch").read_text()
    (moved / "half.patch").write_text(text.replace("@@ -38,7 +38,7 @@", "@@ -37,7 +37,7 @@"))
    assert (moved / "half.patch").read_text() != text
    with pytest.raises(PatchStackError, match=r"half\.patch, line 13: does not apply to fakelib/alpha\.py"):
        apply(site, moved, **quiet)
    broken = {**PRISTINE, f"{PACKAGE}/beta.py": b"def f(:\n"}
    with pytest.raises(PatchStackError, match=r"fakelib/beta\.py does not compile: .*line 1"):
        apply(site, make_patches(tmp_path / "broken", ("bad.patch", broken)), **quiet)
    assert installed(site) == PRISTINE


def test_series_and_folder_must_agree(tmp_path):
    patches = stack_one(tmp_path / "patches")
    (patches / "extra.patch").write_text(diff(PRISTINE, HALF))
    with pytest.raises(PatchStackError, match=r"extra\.patch in .* is not in its series"):
        load_stack(patches)
    (patches / "extra.patch").rename(patches / "half.patch.off")
    (patches / "half.patch").unlink()
    with pytest.raises(PatchStackError, match=r"names half\.patch, which is not in"):
        load_stack(patches)
    for line, problem in [("../half.patch", "is not the name"), ("rest.patch", "is there twice")]:
        (patches / "series").write_text(f"rest.patch\n# group\n{line}\n")
        with pytest.raises(PatchStackError, match=f"series, line 3: .*{problem}"):
            load_stack(patches)
    (patches / "BASE").write_text("package: fakelib\nversion: 1.0\n")
    with pytest.raises(PatchStackError, match="does not say tree-sha256"):
        load_stack(patches)


def test_new_files_are_newer_so_that_no_old_bytecode_is_taken_for_theirs(tmp_path):
    # "base" and "new2" give files of one size; with one time as well, Python would run the old bytecode
    site, patches = make_site(tmp_path), stack_two(tmp_path / "patches")
    for path in (site / PACKAGE).rglob("*.py"):
        os.utime(path, (time.time() + 1000,) * 2)
    code = "import fakelib.alpha, fakelib.sub.delta as d; print(fakelib.alpha.STACK, d.STACK)"
    env = {"PYTHONPATH": str(site), "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode")}
    for action, expected in [(None, "base"), (apply, "new2"), (restore, "base"), (apply, "new2")]:
        oldest = max(path.stat().st_mtime for path in (site / PACKAGE).rglob("*.py"))
        if action:
            action(site, patches, **quiet)
            assert min(path.stat().st_mtime for path in (site / PACKAGE).rglob("*.py")) > int(oldest)
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [expected, expected]
    assert list((tmp_path / "bytecode").rglob("*.pyc"))


def test_a_second_run_waits_and_says_for_whom(tmp_path):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    apply(site, patches, **quiet)
    waiting, said = threading.Event(), []

    def say(text):
        said.append(text)
        waiting.set()

    with open(site / f".{PACKAGE}-patch-stack" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=restore, args=(site, patches, say))
        second.start()
        assert waiting.wait(20)
        assert installed(site) == NEW1
    second.join(20)
    assert installed(site) == PRISTINE
    assert f"waiting for another run (last writer: process {os.getpid()})" in said[0]


def test_a_run_that_waits_too_long_fails_clearly(tmp_path, monkeypatch):
    site, patches = make_site(tmp_path), stack_one(tmp_path / "patches")
    apply(site, patches, **quiet)
    monkeypatch.setattr(patch_stack, "LOCK_WAIT", 0.1)
    with open(site / f".{PACKAGE}-patch-stack" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for action in (lambda: restore(site, patches, **quiet), lambda: check_stack(site, patches)):
            with pytest.raises(PatchStackError, match=r"another run has held .*lock for 0 s"):
                action()
    check_stack(site, patches)
