"""Killed at any moment, the installed package is exactly the old or exactly the new one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stack_fixture import NEW1, NEW2, PACKAGE, PRISTINE, make_site, stack_one, stack_two

from gptoss_rl.stack import apply as patch_stack
from gptoss_rl.stack.apply import apply, check_stack, restore
from gptoss_rl.stack.installed import read_tree
from gptoss_rl.stack.series import ROOT

KILLS = 50
SEED = 0
# What changes the file system, as Python's audit hooks name it.
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.utime", "tempfile.mkdtemp", "shutil.rmtree"}

quiet = {"say": lambda text: None}


def store(site: Path) -> Path:
    return site / f".{PACKAGE}-patch-stack"


def two_renames(one, other) -> bool:
    """Stands in for a kernel or file system without RENAME_EXCHANGE."""
    return False


def killed_at(change: int, action) -> bool:
    """Runs `action` in a child that kills itself right before its n-th change to the file system.

    Returns whether the child died of it (else it had finished before). Also kills before a file is opened for
    writing, and after it was opened: then it is there and empty.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event, args):
            nonlocal seen
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or writes:
                seen += 1
                if seen == change:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            action()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("swap", ["exchange", "two renames"])
@pytest.mark.parametrize("step", ["first apply", "rebuild", "restore"])
def test_a_kill_before_any_change_to_the_file_system_is_survived(tmp_path, monkeypatch, swap, step):
    if swap == "two renames":
        monkeypatch.setattr(patch_stack, "exchange", two_renames)
    one, two = stack_one(tmp_path / "one"), stack_two(tmp_path / "two")
    old, new = {"first apply": (PRISTINE, NEW2), "rebuild": (NEW1, NEW2), "restore": (NEW1, PRISTINE)}[step]
    gaps = kills = 0
    while True:
        site = make_site(tmp_path / f"{kills}")
        if step != "first apply":
            apply(site, one, **quiet)
        run = restore if step == "restore" else apply
        if not killed_at(kills + 1, lambda: run(site, two, **quiet)):  # noqa: B023 (it runs at once)
            break
        kills += 1
        found = read_tree(site / PACKAGE)
        if not found:
            gaps += 1
            assert swap == "two renames"
        assert found in (old, new, {})
        if step == "restore":
            restore(site, two, **quiet)
        else:
            apply(site, two, **quiet)
            check_stack(site, two)
        assert read_tree(site / PACKAGE) == new
        assert {path.name for path in store(site).iterdir()} <= {"lock", "pristine-1.0.zip", "trees.json"}
    # a hook that never fires, or a swap that the kills never fall into, would prove nothing
    assert kills > 20
    assert gaps == (1 if swap == "two renames" else 0)


@pytest.mark.parametrize("mender", ["check", "apply", "restore"])
def test_the_gap_of_the_fallback_swap_is_mended(tmp_path, mender):
    one, two = stack_one(tmp_path / "one"), stack_two(tmp_path / "two")
    site = make_site(tmp_path)
    apply(site, one, **quiet)
    (site / PACKAGE).rename(store(site) / "aside")  # where a run dies between its two renames
    if mender == "check":
        check_stack(site, one)
    elif mender == "apply":
        apply(site, two, **quiet)
    else:
        restore(site, one, **quiet)
    assert read_tree(site / PACKAGE) == {"check": NEW1, "apply": NEW2, "restore": PRISTINE}[mender]
    assert not (store(site) / "aside").exists()


def test_the_kernel_here_exchanges_folders_atomically(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"was_{name}").touch()
    if patch_stack.exchange(tmp_path / "a", tmp_path / "b"):
        assert (tmp_path / "a/was_b").exists()
    assert (tmp_path / "b/was_a").exists() == (tmp_path / "a/was_b").exists()


DRIVER = """
import itertools, sys
from pathlib import Path
from gptoss_rl.stack import apply as patch_stack
site, one, two = map(Path, sys.argv[1:4])
if sys.argv[4] == "two renames":
    patch_stack.exchange = lambda a, b: False
for turn in itertools.cycle([one, two, None]):
    if turn is None:
        patch_stack.restore(site, one, say=print)
    else:
        patch_stack.apply(site, turn, say=print)
    sys.stdout.flush()
"""


@pytest.mark.parametrize("swap", ["exchange", "two renames"])
def test_fifty_kills_at_random_moments_never_leave_a_mixture(tmp_path, swap):
    one, two = stack_one(tmp_path / "one"), stack_two(tmp_path / "two")
    site = make_site(tmp_path)
    rng = random.Random(SEED)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    look = "from fakelib import alpha, beta; from fakelib.sub import delta;print(alpha.STACK, beta.STACK, delta.STACK)"
    seen = set()
    for _ in range(KILLS):
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, site, one, two, swap], env=env, stdout=subprocess.PIPE, text=True
        )
        assert driver.stdout.readline()  # it is at work now
        time.sleep(rng.uniform(0, 0.06))
        driver.kill()
        driver.communicate()
        assert driver.returncode == -signal.SIGKILL
        found = read_tree(site / PACKAGE)
        assert found in (PRISTINE, NEW1, NEW2) or (swap == "two renames" and not found)
        if found:
            # what Python makes of it, with the bytecode that earlier rounds have left
            done = subprocess.run(
                [sys.executable, "-c", look],
                env={"PYTHONPATH": str(site)},
                capture_output=True,
                text=True,
                check=True,
            )
            assert len(set(done.stdout.split())) == 1
            seen.add(done.stdout.split()[0])
        next_run = rng.choice([one, two])
        apply(site, next_run, **quiet)
        check_stack(site, next_run)
    assert seen == {"base", "new1", "new2"}
