"""Look at machine, software, kernels, files, flags, learning rate, memory and duration before a run; problems with remedies.

Exits with 1 when something would stop the run or make it worthless. Without GPUs it says what it could not check. Launchers
call it with --launch: it then goes on to close the gates of the launch and to make the run directory, which it prints.

    python preflight.py --config a31
    python preflight.py --config tiny_cpu --json
    python preflight.py --config a30 --micro_train_batch_size 1        # flags as for the launcher
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptoss_rl.doctor import STOP, Finding, examine, probe
from gptoss_rl.errors import GateError
from gptoss_rl.flags import ENTRY_POINT
from gptoss_rl.run.flag_rules import read_flags
from gptoss_rl.run.launch import prepare

ROOT = Path(__file__).resolve().parent
COLOURS = {"ok": "green", "warning": "yellow", "stop": "bold red", "not checked": "dim"}
LOG_WIDTH = 160  # where the output is no terminal
LAUNCHERS = sorted(path.stem.removeprefix("train_grpo_").removeprefix("20b_") for path in ROOT.glob("train_grpo_*.sh"))


def launcher(config: str) -> Path:
    """train_grpo_20b_a30.sh for a30, train_grpo_tiny_cpu.sh for tiny_cpu."""
    for path in (ROOT / f"train_grpo_20b_{config}.sh", ROOT / f"train_grpo_{config}.sh"):
        if path.is_file():
            return path
    sys.exit(f"preflight: no launcher for --config {config}; there are {', '.join(LAUNCHERS)}")


def flags_of(config: str, extra: list[str]) -> list[str]:
    """The flags that the launcher would run with."""
    command = ["bash", str(launcher(config)), *extra]
    done = subprocess.run(command, env={**os.environ, "DRY_RUN": "1"}, capture_output=True, text=True, check=True)
    words = shlex.split(done.stdout)
    return words[words.index(ENTRY_POINT) + 1 :]


def look(argv: list[str]) -> list[Finding]:
    """What `examine` finds of a run with these flags; of flags that cannot even be read, why."""
    try:
        args = read_flags(argv)
    except GateError as error:
        return [Finding(STOP, "flags", str(error))]
    return examine(args, probe(Path(args.run_dir or ROOT).absolute()), ROOT)


def show(findings: list[Finding], stream: TextIO) -> None:
    """A table; one line a finding as far as the width allows."""
    table = Table(box=None, padding=(0, 1))
    for head in ("", "check", "seen", "remedy"):
        table.add_column(head, overflow="fold")
    for finding in findings:
        words = map(escape, (finding.check, finding.seen, finding.remedy))
        table.add_row(f"[{COLOURS[finding.level]}]{finding.level}[/]", *words)
    Console(file=stream, width=None if stream.isatty() else LOG_WIDTH).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Further flags are the launcher's.", allow_abbrev=False
    )
    parser.add_argument("--config", metavar="NAME",
        help=f"a launcher: {', '.join(LAUNCHERS)}; without it the further flags are the whole command's")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="findings (level, check, seen, remedy) as JSON instead of a table")
    parser.add_argument(
        "--launch",
        action="store_true",
        help="for launchers: then prepare the run and print its directory, the table on stderr; PREFLIGHT=0: in any case",
    )
    own, extra = parser.parse_known_args()
    if not own.config and not any(word.split("=")[0] == "--pretrain" for word in extra):
        parser.error("--config NAME, or the whole command's flags (at least --pretrain)")
    flags = flags_of(own.config, extra) if own.config else extra
    findings = look(flags)
    if own.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        show(findings, sys.stderr if own.launch else sys.stdout)
    stops = [finding for finding in findings if finding.level == STOP]
    for finding in stops:
        # A gate's sentence names its remedy itself.
        print(f"preflight: {finding.check}: {finding.seen}" + (f". Remedy: {finding.remedy}" if finding.remedy else ""),
              file=sys.stderr)  # fmt: skip
    if not own.launch or (stops and os.environ.get("PREFLIGHT") != "0"):
        sys.exit(bool(stops))
    try:
        print(prepare(flags))
    except RuntimeError as error:  # GateError and PatchStackError: one sentence, no traceback
        sys.exit(f"refused: {error}")


if __name__ == "__main__":
    main()
