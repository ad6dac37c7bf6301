"""Ray for a run: start one here, or use the cluster that RAY_ADDRESS names; what would keep it from starting is said first.

python -m gptoss_rl.sync.cluster FLAGS        # of a launcher; exits with a sentence before anything heavy is imported
"""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gptoss_rl.errors import GateError

# Copied to every worker: a cluster that was started elsewhere has its own environment.
FORWARDED = (
    "HF_HUB_OFFLINE",
    "DS_ACCELERATOR",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_WORKER_MULTIPROC_METHOD",
    "VLLM_CACHE_ROOT",
    "OMP_NUM_THREADS",
    "WANDB_DIR",
    "WANDB_MODE",
)
OBJECT_STORE_BYTES = 512 * 1024**2  # a CPU run moves an adapter and some token lists
SHM_BESIDE_STORE = 64 * 1024**2  # bytes: queues of vLLM's workers, of which a run fills little
LEAST_SHM_BYTES = 1024**3  # on GPUs, where Ray cuts its store to what is there, NCCL needs some, and a step puts some GB
CONNECT_SECONDS, ANSWER_SECONDS = 3.0, 6.0
# Raises when who answers is no head of a cluster, and waits for more than half a minute when he says nothing.
ASK = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
ADDRESS = re.compile(r"\[?[\w.:-]+?\]?:\d{1,5}")
SOCKET_BYTES = 107  # of sun_path's 108, unix(7), the last is its end
# Ray's longest socket (ray/_private/node.py: session_<date>_<process id>) and vLLM's (vllm/utils: a UUID), below the
# temporary folder.
RAY_SOCKET = "/ray/session_2000-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
VLLM_SOCKET_BYTES = 37


def devices_needed(args: argparse.Namespace) -> int:
    """Devices that the actors and engines of a run reserve."""
    actors = args.actor_num_nodes * args.actor_num_gpus_per_node
    return actors + (args.vllm_num_engines or 0) * args.vllm_tensor_parallel_size


def cluster_address() -> str | None:
    """What RAY_ADDRESS names; None when the run starts a Ray of its own."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def connect(args: argparse.Namespace) -> None:
    """Start Ray, or join the cluster of RAY_ADDRESS.

    Raises:
        GateError: it cannot start here, does not answer, or can never place the run.
    """
    import ray

    check_ray(args)
    if cluster_address() is None:
        os.environ.pop("RAY_ADDRESS", None)  # "local" means this process, and its workers would start a Ray each
    ray.init(**ray_options(args))
    check_cluster(args)


def check_ray(args: argparse.Namespace) -> None:
    """Raises GateError naming everything that would keep Ray from starting here or from answering."""
    problems = ray_problems(args)
    if problems:
        raise GateError("cluster", "; ".join(problems))


def ray_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `ray.init`."""
    # vLLM would tell its makers of every engine's start, and look at the processor for a second to do so.
    env = {"TOKENIZERS_PARALLELISM": "false", "NCCL_DEBUG": "WARN", "VLLM_NO_USAGE_STATS": "1"}
    if args.num_devices is not None:  # engines share the processor, and vLLM would give each a part of it for itself
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    env |= {name: os.environ[name] for name in FORWARDED if name in os.environ}
    options: dict[str, Any] = {"runtime_env": {"env_vars": env}, "log_to_driver": True}
    if cluster_address() is not None:
        return options
    # Without an address Ray joins whatever `ray start` left running on this machine.
    options |= {"address": "local", "include_dashboard": False}
    if args.num_devices is not None:
        # Ray counts devices, it does not need them: on a CPU machine an actor's "GPU" is a slot. Likewise for
        # CPUs: each actor and engine reserves one, and a laptop may have fewer.
        options |= {
            "num_gpus": args.num_devices,
            "num_cpus": max(os.cpu_count() or 1, 2 * args.num_devices + 2),
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    return options


def ray_problems(args: argparse.Namespace) -> list[str]:
    """Why Ray could not start here or would not answer, found within ten seconds; one sentence each."""
    address = cluster_address()
    if address is not None:
        return address_problems(address)
    return [*folder_problems(), *shared_memory_problems(args)]


def address_problems(address: str) -> list[str]:
    """No address of a cluster, or nobody there."""
    remedy = "set RAY_ADDRESS=HOST:PORT as `ray start --head` printed it, or unset it to start Ray here"
    if address == "auto":  # Ray looks for a cluster on this machine itself, and says at once when there is none
        return []
    if not ADDRESS.fullmatch(address):
        return [f"RAY_ADDRESS={address} is no address of a cluster's head (http:// is for jobs, ray:// for clients): {remedy}"]
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        return [f"RAY_ADDRESS={address}: nobody answers there ({error}): {remedy}"]
    try:
        asked = subprocess.run([sys.executable, "-c", ASK, address], capture_output=True, check=False, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return [f"RAY_ADDRESS={address}: who answers there says nothing for {ANSWER_SECONDS:g} s, as no Ray does: {remedy}"]
    return [f"RAY_ADDRESS={address}: who answers there is not Ray: {remedy}"] if asked.returncode else []


def folder_problems() -> list[str]:
    """A temporary folder below which the paths of sockets are longer than Linux takes, or that cannot be written."""
    temporary = tempfile.gettempdir()
    ray_folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    last_pid = Path("/proc/sys/kernel/pid_max")
    pid = last_pid.read_text().strip() if last_pid.is_file() else "4194304"
    below = len(RAY_SOCKET.format(pid=pid))
    problems = []
    for who, folder, name, suffix in (
        ("Ray", ray_folder, variable, below),
        ("vLLM", temporary, "TMPDIR", VLLM_SOCKET_BYTES),
    ):
        length = len(os.fsencode(folder)) + suffix
        if length > SOCKET_BYTES:
            problems.append(
                f"{name}={folder}: {who}'s sockets below it would have paths of up to {length} bytes, and Linux takes "
                f"{SOCKET_BYTES} (AF_UNIX): set {name} to a folder of at most {SOCKET_BYTES - suffix} bytes, e.g. {name}=/tmp"
            )
    there = Path(ray_folder)
    while not there.exists() and there != there.parent:
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        problems.append(f"{variable}={ray_folder}: Ray keeps its session there and cannot write it: set {variable} to another")
    return problems


def shared_memory_problems(args: argparse.Namespace) -> list[str]:
    """A /dev/shm in which Ray's object store has no room."""
    if not Path("/dev/shm").is_dir():
        return ["there is no /dev/shm, in which Ray keeps its objects: mount it (mount -t tmpfs tmpfs /dev/shm)"]
    free = shutil.disk_usage("/dev/shm").free
    needed = LEAST_SHM_BYTES if args.num_devices is None else OBJECT_STORE_BYTES + SHM_BESIDE_STORE
    if free >= needed:
        return []
    return [
        f"/dev/shm has {free / 1e9:.2f} GB free, and Ray's objects and vLLM's queues need {needed / 1e9:.2f}: start the "
        "container with --shm-size 16g, mount it larger (mount -o remount,size=16g /dev/shm), or delete what others left there"
    ]


def check_cluster(args: argparse.Namespace) -> None:
    """Raises GateError when the cluster can never place the run; Ray itself would wait for ever."""
    import ray

    found, needed = ray.cluster_resources().get("GPU", 0), devices_needed(args)
    if found < needed:
        raise GateError(
            "cluster",
            f"the run needs {needed} devices (actors and engines), Ray has {found:g}. On a CPU machine pass "
            f"--num_devices {needed}; on a cluster check that every node has joined (`ray status`).",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], add_help=False, allow_abbrev=False)
    parser.add_argument("--num_devices", type=int)
    args, _ = parser.parse_known_args()
    try:
        check_ray(args)
    except GateError as error:
        sys.exit(f"refused: {error}")


if __name__ == "__main__":
    main()
