"""How busy the host and its GPUs are."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
ANSWER_SECONDS = 5.0  # a driver in trouble answers late or never, and then one wants the rest of the view all the more
SAMPLE_SECONDS = 2.0
Gpu = dict[str, float | None]


def number(text: str) -> float | None:
    """None for `[N/A]` and its like, which shared memory, MIG slices and broken sensors give."""
    try:
        return float(text)
    except ValueError:
        return None


def query_gpus() -> list[Gpu] | None:
    """Utilisation and memory of every GPU; None when nvidia-smi fails or does not answer in time."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [[number(cell) for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    return [{"percent": row[0], "used_mib": row[1], "total_mib": row[2]} for row in rows]


class GpuWatch:
    """Asks nvidia-smi in a thread of its own, so that neither a slow answer nor none holds up who looks."""

    def __init__(self) -> None:
        self._answer: list[Gpu] | None = None  # unknown
        self._asked = threading.Event()
        if shutil.which(QUERY[0]) is None:
            self._answer = []
            self._asked.set()
        else:
            threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self._answer = query_gpus()
            self._asked.set()
            time.sleep(SAMPLE_SECONDS)

    def latest(self, patience: float = 0.0) -> list[Gpu] | None:
        """The last answer, empty without nvidia-smi; None while there is none, for the first at most `patience` seconds."""
        self._asked.wait(patience)
        return self._answer


def host_load() -> dict[str, float | None]:
    """Load, CPUs, and memory in use and in all, in bytes (proc(5), /proc/meminfo)."""
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {row[0].rstrip(":"): 1024.0 * int(row[1]) for row in rows}
    memory = {"memory_used": found["MemTotal"] - found["MemAvailable"], "memory": found["MemTotal"]}
    return {"load": os.getloadavg()[0], "cpus": os.cpu_count(), **memory}
