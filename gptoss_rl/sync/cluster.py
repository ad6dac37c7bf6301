"""Ray for a run: start one here, or use the cluster that RAY_ADDRESS names."""

import argparse
import os
from typing import Any

import ray

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


def devices_needed(args: argparse.Namespace) -> int:
    """Devices that the actors and engines of a run reserve."""
    actors = args.actor_num_nodes * args.actor_num_gpus_per_node
    return actors + (args.vllm_num_engines or 0) * args.vllm_tensor_parallel_size


def ray_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `ray.init`."""
    env = {"TOKENIZERS_PARALLELISM": "false", "NCCL_DEBUG": "WARN"}
    env |= {name: os.environ[name] for name in FORWARDED if name in os.environ}
    options: dict[str, Any] = {"runtime_env": {"env_vars": env}, "log_to_driver": True}
    if os.environ.get("RAY_ADDRESS"):
        return options
    options["include_dashboard"] = False
    if args.num_devices is not None:
        # Ray counts devices, it does not need them: on a CPU machine an actor's "GPU" is a slot. Likewise for
        # CPUs: each actor and engine reserves one, and a laptop may have fewer.
        options |= {
            "num_gpus": args.num_devices,
            "num_cpus": max(os.cpu_count() or 1, 2 * args.num_devices + 2),
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    return options


def check_cluster(args: argparse.Namespace) -> None:
    """Raises GateError when the cluster can never place the run; Ray itself would wait for ever."""
    found, needed = ray.cluster_resources().get("GPU", 0), devices_needed(args)
    if found < needed:
        raise GateError(
            "flags",
            f"the run needs {needed} devices (actors and engines), Ray has {found:g}. On a CPU machine pass "
            f"--num_devices {needed}; on a cluster check that every node has joined (`ray status`).",
        )
