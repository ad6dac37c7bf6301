"""What a launcher does before training: gates, the run directory, and a record of what is about to run.

The run directory then holds command.txt, config.json and environment.json. When a gate is closed nothing is made.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from gptoss_rl.flags import ENTRY_POINT
from gptoss_rl.run.directory import check_unoccupied, set_failed_start_aside
from gptoss_rl.run.leftovers import remove_stale_locks
from gptoss_rl.run.resume import record_of
from gptoss_rl.run_files import process_record, write_json_atomically, write_text_atomically
from gptoss_rl.versions import stack_versions


def _output(*command: str) -> str | None:
    """Standard output of a command that may not exist here; None then."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    """Where and with what a run happens."""
    from gptoss_rl.stack.apply import stack_fingerprint

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": (
            _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader") or ""
        ).splitlines(),
        "git_commit": _output("git", "rev-parse", "HEAD"),
        "git_diff": _output("git", "diff", "HEAD"),
        "patch_stack": stack_fingerprint(),
        "versions": stack_versions(),
    }


def prepare(argv: list[str]) -> Path:
    """Check the flags and data of a run and create its directory.

    Raises:
        GateError: a gate is closed, or the directory already holds a run that is not being resumed.
    """
    from gptoss_rl.run.flag_rules import read_flags
    from gptoss_rl.run.launch_gates import check_launch
    from gptoss_rl.sync.cluster import check_ray

    args = read_flags(argv)
    check_ray(args)
    check_launch(args)
    check_unoccupied(args)
    folder = Path(args.run_dir)
    aside = None if args.load_checkpoint else set_failed_start_aside(folder)
    if aside:
        print(f"an earlier start here took no step; what it left is in {aside}", file=sys.stderr)
    for locked in remove_stale_locks():
        print(f"removed the lock of a process that was killed while it compiled {locked}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join([sys.executable, "-m", ENTRY_POINT, *argv])
    suffix = f".resume{len(list(folder.glob('command*.txt')))}" if args.load_checkpoint else ""
    write_text_atomically(folder / f"command{suffix}.txt", command + "\n")
    write_json_atomically(folder / f"config{suffix}.json", record_of(args))
    write_json_atomically(folder / f"environment{suffix}.json", environment())
    (folder / "exit.json").unlink(missing_ok=True)  # of the life that is being resumed
    write_json_atomically(folder / "process.json", process_record())
    return folder
