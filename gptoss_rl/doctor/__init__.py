"""What can be known about a run before it is started: machine, software, kernels, files, flags, memory, duration.

`preflight.py` prints what `examine` finds.
"""

import argparse
from pathlib import Path

from gptoss_rl.doctor.files import check_checkpoints, examine_data, examine_run_directory
from gptoss_rl.doctor.findings import OK, STOP, UNKNOWN, WARNING, Finding
from gptoss_rl.doctor.hardware import check_devices, check_host
from gptoss_rl.doctor.kernels import check_kernels
from gptoss_rl.doctor.machine import Machine, probe
from gptoss_rl.doctor.plan import check_duration, check_flag_combinations, check_learning_rate
from gptoss_rl.doctor.software import check_software, requirements_file
from gptoss_rl.run.flag_rules import count_problems
from gptoss_rl.training.schedule import run_length

__all__ = ["OK", "STOP", "UNKNOWN", "WARNING", "Finding", "Machine", "examine", "probe"]


def examine(args: argparse.Namespace, machine: Machine, root: Path) -> list[Finding]:
    """Everything that can be checked here; `root` is the repository."""
    data, train, evaluated = examine_data(args)
    fixed = [*check_software(requirements_file(root, args, machine)), *check_flag_combinations(args),
             *check_checkpoints(args), *data, *examine_run_directory(args)]  # fmt: skip
    if count_problems(args):
        return fixed  # with less than one of something no size, rate or time can be computed
    prompts = min(train, int(args.max_samples))
    steps = run_length(args, prompts).global_steps
    return [
        *check_devices(args, machine),
        *check_kernels(args, machine),
        *check_host(args, machine, steps, evaluated),
        *fixed,
        check_learning_rate(args, prompts),
        check_duration(args, machine, prompts),
    ]
