"""What a run leaves is ended and removed by what it is called, and nothing of anybody else's."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torch.utils.file_baton import FileBaton

from gptoss_rl.run.leftovers import MARK, note_shared_memory, notes_of, processes, remove_stale_locks, shared_memory_of, sweep

# Maps two files of shared memory, says so, and waits; with "stubborn" it does not listen to SIGTERM.
HOLDER = """
import mmap, os, signal, sys, time
for path in sys.argv[2:]:
    file = open(path, "w+b")
    file.truncate(4096)
    globals()[path] = mmap.mmap(file.fileno(), 4096)
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def hold(launch: str, manner: str, *paths: str) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, manner, *paths]
    process = subprocess.Popen(command, env={**os.environ, MARK: launch}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def launch() -> str:
    return f"test-{secrets.token_hex(8)}"


def test_processes_of_the_launch_are_ended_even_when_they_do_not_listen_and_others_are_not(launch: str) -> None:
    own = [hold(launch, manner) for manner in ("willing", "stubborn")]
    other = hold(f"{launch}-other", "willing")
    assert {process.pid for process in processes(launch)} == {process.pid for process in own}
    assert {int(name.split()[0]) for name in sweep(launch)} == {process.pid for process in own}
    assert not any(psutil.pid_exists(process.pid) for process in own)
    assert other.poll() is None
    other.kill()
    other.wait()
    assert sweep(launch) == []


def test_shared_memory_is_removed_also_of_a_process_that_was_killed(launch: str) -> None:
    name = secrets.token_hex(8)
    # A library's file that stays, one of a kind that no run makes, and one of a process that lives on.
    mine, service, others = (f"/dev/shm/{kind}{name}" for kind in ("psm_", "service-", "sem.mp-"))
    victim, other = hold(launch, "willing", mine, service), hold(f"{launch}-other", "willing", others)
    try:
        assert shared_memory_of(victim.pid) == {mine}
        note_shared_memory(launch)
        note_shared_memory(launch)  # nothing stands there twice
        assert notes_of(launch).read_text() == f"{mine}\n"
        victim.kill()  # its files lose nobody's name by that
        victim.wait()
        assert Path(mine).exists()
        sweep(launch)
        assert [Path(path).exists() for path in (mine, service, others)] == [False, True, True]
        assert not notes_of(launch).exists()
    finally:
        other.kill()
        other.wait()
        for path in (mine, service, others):
            Path(path).unlink(missing_ok=True)


def test_without_a_launcher_nothing_is_noted_and_the_command_says_so() -> None:
    note_shared_memory(None)
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    done = subprocess.run([sys.executable, "-m", "gptoss_rl.run.leftovers"], env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 1
    assert f"{MARK} is not set" in done.stderr


def test_a_lock_that_nobody_holds_is_removed_and_one_that_is_held_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without it torch waits for ever, without a word, for a process that was killed while it compiled.
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    batons = []
    for name in ("killed", "at_work"):
        (tmp_path / name).mkdir()
        batons.append(FileBaton(str(tmp_path / name / "lock")))
        assert batons[-1].try_acquire()
    os.close(batons[0].fd)  # as its process's end does
    assert remove_stale_locks() == [tmp_path / "killed"]
    assert [(tmp_path / name / "lock").exists() for name in ("killed", "at_work")] == [False, True]
    batons[1].release()


def test_a_process_that_has_ended_holds_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert shared_memory_of(gone.pid) == set()
    assert not psutil.pid_exists(gone.pid)
