"""Look at machine, software, files, flags and memory before a run; every problem with its remedy.

Exits with 1 when something would stop the run or make it worthless. Without GPUs it says what it could not check.

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

from rich.console import Console
from rich.table import Table

from gptoss_rl.doctor import STOP, Finding, examine, probe
from gptoss_rl.flags import ENTRY_POINT, parse, resolve

ROOT = Path(__file__).resolve().parent
COLOURS = {"ok": "green", "warning": "yellow", "stop": "bold red", "not checked": "dim"}


def launcher(config: str) -> Path:
    """train_grpo_20b_a30.sh for a30, train_grpo_tiny_cpu.sh for tiny_cpu."""
    for path in (ROOT / f"train_grpo_20b_{config}.sh", ROOT / f"train_grpo_{config}.sh"):
        if path.is_file():
            return path
    known = sorted(path.stem.removeprefix("train_grpo_").removeprefix("20b_") for path in ROOT.glob("train_grpo_*.sh"))
    sys.exit(f"preflight: no launcher for --config {config}; there are {', '.join(known)}")


def flags_of(config: str, extra: list[str]) -> list[str]:
    """The flags that the launcher would run with."""
    command = ["bash", str(launcher(config)), *extra]
    done = subprocess.run(command, env={**os.environ, "DRY_RUN": "1"}, capture_output=True, text=True, check=True)
    words = shlex.split(done.stdout)
    return words[words.index(ENTRY_POINT) + 1 :]


def show(findings: list[Finding]) -> None:
    table = Table(box=None, padding=(0, 1))
    for head in ("", "check", "seen", "remedy"):
        table.add_column(head, overflow="fold")
    for finding in findings:
        table.add_row(f"[{COLOURS[finding.level]}]{finding.level}[/]", finding.check, finding.seen, finding.remedy)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="Further flags are the launcher's.")
    parser.add_argument("--config", required=True, help="a29b, a30, a31 or tiny_cpu")
    parser.add_argument("--json", action="store_true")
    own, extra = parser.parse_known_args()
    args = resolve(parse(flags_of(own.config, extra)))
    machine = probe(ROOT)
    requirements = ROOT / "requirements" / ("gpu.txt" if machine.gpus else "cpu.txt")
    findings = examine(args, machine, requirements)
    if own.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        show(findings)
    sys.exit(any(finding.level == STOP for finding in findings))


if __name__ == "__main__":
    main()
