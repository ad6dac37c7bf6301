"""How the driver of a run ended: exit.json, and a sentence in train.log when the driver could not say one itself.

    python -m gptoss_rl.run.ending runs/NAME STATUS BYTES      # STATUS as the shell's $?, BYTES that train.log had at the start

A driver that the kernel ends for memory, or that Ray ends because its head died, leaves no error of its own.
"""

import argparse
import os
import signal
from pathlib import Path

from gptoss_rl.errors import GateError
from gptoss_rl.run_files import write_json_atomically

SIGNALLED = 128  # a shell adds the signal's number to it, bash(1)
# Ray's C++ (gcs_rpc_client.h) prints it and ends the process that could not reach its head.
LOST_HEAD = "GCS may have been killed"
LOG_TAIL = 64 * 1024  # bytes of what the driver printed


def driver_error(status: int, log: str) -> GateError | None:
    """Why the driver ended, where it could not say so; None when it ended by itself.

    Args:
        status: of the shell.
        log: the end of what it printed.
    """
    if LOST_HEAD in log:
        said = "Ray's head process (gcs_server) died, and every part of the run ended with it"
        return GateError("parts", f"{said}: the kernel ends one for memory (dmesg says so), or somebody ended it")
    if status <= SIGNALLED or status == SIGNALLED + signal.SIGINT:  # Ctrl-C is told by the driver
        return None
    number = status - SIGNALLED
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    causes = "the kernel ends one for memory (dmesg says so), somebody ended it, or it crashed in native code"
    return GateError("parts", f"the driver was ended by {name}: {causes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("status", type=int)
    parser.add_argument("start", type=int, help="bytes of train.log that were there before: of lives that ended otherwise")
    args = parser.parse_args()
    with (args.run_dir / "train.log").open("a+b") as log:
        log.seek(max(args.start, log.seek(0, os.SEEK_END) - LOG_TAIL))
        printed = log.read().decode("utf-8", "replace")
        error = driver_error(args.status, printed) if args.status else None
        if error:
            line = f"{error}\n" if printed.endswith("\n") else f"\n{error}\n"  # it may have died in the middle of one
            log.write(line.encode())
            print(error)
    write_json_atomically(args.run_dir / "exit.json", {"status": args.status})


if __name__ == "__main__":
    main()
