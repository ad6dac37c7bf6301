"""Ends what a run started and did not end: a killed driver leaves Ray's and vLLM's processes, and what they hold of /dev/shm.

    python -m gptoss_rl.run.leftovers        # of the launcher that set GPTOSS_RL_LAUNCH in this environment

Every process of a run inherits that variable, so only the run's own are found; on other nodes Ray ends its workers itself.
When Ray ends a worker it kills Python's resource tracker too, which would have removed the worker's semaphores and shared
memory. So the driver writes down which files the run's processes have mapped while they live, and those are removed.
"""

import os
import sys
import tempfile
from pathlib import Path

import psutil

MARK = "GPTOSS_RL_LAUNCH"
# What Python's multiprocessing, torch and NCCL call their files: a process may have a system service's mapped as well.
NAMES = ("sem.mp-", "psm_", "torch_", "nccl-")
PATIENCE = 3.0  # seconds to end by itself after SIGTERM
SHM = "/dev/shm/"


def processes(launch: str) -> list[psutil.Process]:
    """Processes of the launch, without this one and those that it was started by."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and process.environ().get(MARK) == launch and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended, or is another user's
            continue
    return found


def shared_memory_of(pid: int) -> set[str]:
    """Files of /dev/shm that a process has mapped, that are a run's own by their names, and that still have them."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:  # it has ended
        return set()
    mapped = {line[line.index(SHM) :] for line in lines if SHM in line and not line.endswith("(deleted)")}
    return {path for path in mapped if path.removeprefix(SHM).startswith(NAMES)}


def is_open_anywhere(path: Path) -> bool:
    """Whether a process of this user has the file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.samefile(path):
                return True
        except OSError:  # the process has ended, or is another user's
            continue
    return False


def remove_stale_locks() -> list[Path]:
    """Remove what a process left that was killed while DeepSpeed had something compiled; the folders that it locked.

    Whoever compiles holds the lock open (torch/utils/file_baton.py), and torch waits for ever for one that nobody holds.
    """
    from torch.utils import cpp_extension

    # Without the variable torch puts a folder for each Python and CUDA between.
    folder, pattern = os.environ.get("TORCH_EXTENSIONS_DIR"), "*/lock"
    if folder is None:
        folder, pattern = cpp_extension.get_default_build_root(), "*/*/lock"
    stale = [lock for lock in Path(folder).glob(pattern) if not is_open_anywhere(lock)]
    for lock in stale:
        lock.unlink(missing_ok=True)
    return [lock.parent for lock in stale]


def notes_of(launch: str) -> Path:
    """Where the shared memory of a launch is written down."""
    return Path(tempfile.gettempdir(), f"gptoss-rl-{launch}-shared-memory")


def note_shared_memory(launch: str | None) -> None:
    """Write down what the launch's processes have of /dev/shm now, beside what is noted already."""
    if not launch:
        return  # not started by a launcher
    notes = notes_of(launch)
    known = set(notes.read_text().splitlines()) if notes.exists() else set()
    new = set().union(*(shared_memory_of(process.pid) for process in processes(launch))) - known
    if new:
        with notes.open("a") as file:
            file.write("".join(f"{path}\n" for path in sorted(new)))


def sweep(launch: str) -> list[str]:
    """End every process of the launch and remove its shared memory; what they were called."""
    note_shared_memory(launch)
    found = processes(launch)
    names = [f"{process.pid} {process.name()}" for process in found if process.is_running()]
    for signal in ("terminate", "kill"):
        for process in found:
            try:
                getattr(process, signal)()
            except psutil.NoSuchProcess:
                continue
        if found:
            _, found = psutil.wait_procs(found, timeout=PATIENCE)
    notes = notes_of(launch)
    if notes.exists():
        for path in notes.read_text().splitlines():
            Path(path).unlink(missing_ok=True)
        notes.unlink()
    return names


def main() -> None:
    launch = os.environ.get(MARK)
    if not launch:
        sys.exit(f"leftovers: {MARK} is not set; a launcher sets it for what it starts")
    names = sweep(launch)
    if names:
        print(f"ended {len(names)} processes that the run had left: {', '.join(names)}", file=sys.stderr)


if __name__ == "__main__":
    main()
