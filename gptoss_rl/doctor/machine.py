"""What this machine has."""

import math
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_rl.doctor.findings import GB

QUERY = "name,memory.total,memory.used,compute_cap,driver_version"
SMI_SECONDS = 20  # a card that has fallen off the bus keeps nvidia-smi waiting
# Where the limit of a container's memory stands, under control groups of version 2 and 1.
MEMORY_LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass
class Machine:
    """What was found here; tests make others up."""

    # name, memory_gb, used_gb, capability, driver; a figure is None where nvidia-smi does not give it. None: no nvidia-smi.
    gpus: list[dict[str, Any]] | None = None
    memory_gb: float = 0.0
    shm_gb: float = 0.0
    disk_gb: float = 0.0
    temporary_used: float = 0.0  # share of the file system that Ray spills to
    links: list[str] = field(default_factory=list)  # between neighbouring GPUs, as nvidia-smi topo names them
    available_gb: float = math.inf  # of memory_gb, as far as other processes leave it
    smi_said: str = ""  # instead of naming a card

    def least(self, figure: str) -> float | None:
        """The smallest of the cards' figures; None where there is none."""
        return min((gpu[figure] for gpu in self.gpus or [] if gpu[figure] is not None), default=None)


def probe(folder: Path) -> Machine:
    """This machine; `folder` is on the disk that the run will write to, and need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    memory, available = host_memory_of(Path("/"))
    shm = shutil.disk_usage("/dev/shm").total / GB if Path("/dev/shm").is_dir() else 0.0
    spill = shutil.disk_usage(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    machine = Machine(None, memory, shm, shutil.disk_usage(folder).free / GB, spill.used / spill.total, available_gb=available)
    if shutil.which("nvidia-smi") is None:
        return machine
    said = _nvidia_smi(f"--query-gpu={QUERY}", "--format=csv,noheader,nounits")
    cards = read_gpus(said)
    machine.gpus = visible(cards)
    machine.smi_said = "" if cards else (said.strip().splitlines() or ["nothing"])[0]
    machine.links = neighbour_links(_nvidia_smi("topo", "-m")) if cards else []
    return machine


def host_memory_of(root: Path) -> tuple[float, float]:
    """What a run here may use and what of it is left, in GB; `root` holds proc and sys."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    sizes = {words[0]: int(words[1]) * 1024 for words in map(str.split, lines)}
    limits = [(root / path).read_text().strip() for path in MEMORY_LIMITS if (root / path).is_file()]
    total = min([sizes["MemTotal:"], *(int(limit) for limit in limits if limit.isdigit())])  # "max": no limit
    return total / GB, min(total, sizes["MemAvailable:"]) / GB


def _nvidia_smi(*words: str) -> str:
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, check=False, timeout=SMI_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer within {SMI_SECONDS:g} s"
    return done.stdout


def read_gpus(text: str) -> list[dict[str, Any]]:
    """Cards from the lines that nvidia-smi prints for `QUERY`; lines of another form (its error messages) are none."""
    gpus = []
    for line in text.splitlines():
        name, *figures = (part.strip() for part in line.split(","))
        if len(figures) != len(QUERY.split(",")) - 1:
            continue
        total, used, capability, driver = map(_number, (*figures[:3], figures[3].split(".")[0]))
        gpus.append({"name": name, "memory_gb": _mebibytes(total), "used_gb": _mebibytes(used), "capability": capability,
                     "driver": driver})  # fmt: skip
    return gpus


def _number(text: str) -> float | None:
    """None for [N/A], which is what nvidia-smi says of a figure that a card does not have."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _mebibytes(number: float | None) -> float | None:
    return None if number is None else number * 2**20 / GB


def visible(gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that CUDA_VISIBLE_DEVICES leaves to the run, when it lists numbers."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or not re.fullmatch(r"(\d+(,\d+)*)?", wanted):
        return gpus
    return [gpus[int(i)] for i in wanted.split(",") if i and int(i) < len(gpus)]


def neighbour_links(topology: str) -> list[str]:
    """Links GPU0-GPU1, GPU2-GPU3, ... from the matrix that `nvidia-smi topo -m` prints."""
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line).split() for line in topology.splitlines()]
    # The head line begins with GPU0 too; only a card's own row has X, where it meets itself.
    rows = [row for row in rows if row and re.fullmatch(r"GPU\d+", row[0]) and "X" in row]
    return [rows[i][i + 2] for i in range(0, len(rows) - 1, 2)]
