"""Rollout engines outside a training run: the same actor, the same adapter path, started by a few lines.

Used by tests, benchmarks and evaluation, so that what is measured there is what training samples from.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import ray

from gptoss_rl.flags import parse
from gptoss_rl.sync.cluster import ray_options
from gptoss_rl.sync.engine import SYNC_WORKER, engine_options


def engine_arguments(**changes: Any) -> argparse.Namespace:
    """The launch flags at their defaults, with `changes` set; for everything that reads flags."""
    args = parse(
        [
            "--run_dir",
            "unused",
            "--pretrain",
            "unused",
            "--vllm_num_engines",
            "1",
            "--remote_rm_url",
            "unused.py",
        ]
    )
    unknown = [name for name in changes if not hasattr(args, name)]
    if unknown:
        raise TypeError(f"no such flag: {', '.join(unknown)}")
    return argparse.Namespace(**{**vars(args), **changes})


def start_ray(devices: int, extra_path: Path | None = None) -> None:
    """Start a local Ray with logical devices, unless one is up; `extra_path` joins the workers' PYTHONPATH."""
    if ray.is_initialized():
        return
    options = ray_options(engine_arguments(num_devices=devices))
    if extra_path is not None:
        paths = [str(extra_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        options["runtime_env"]["env_vars"]["PYTHONPATH"] = os.pathsep.join(paths)
    ray.init(**{**options, "log_to_driver": False, "logging_level": "ERROR"})


def start_engine(
    model: str | Path,
    args: argparse.Namespace,
    *,
    max_model_len: int,
    worker: str = SYNC_WORKER,
    actor_class: Any = None,
    seed: int = 0,
    memory_utilization: float | None = None,
) -> Any:
    """One engine actor on the local Ray, not yet awaited.

    Args:
        worker: the vLLM worker extension, by qualified name.
        actor_class: a Ray actor class to use instead of OpenRLHF's `LLMRayActor`.
        memory_utilization: share of a card's memory for weights, cache and work; None is vLLM's default.
    """
    from openrlhf.trainer.ray.vllm_engine import LLMRayActor

    tp_size = args.vllm_tensor_parallel_size
    options: dict[str, Any] = {
        "model": str(model),
        "worker_extension_cls": worker,
        "tensor_parallel_size": tp_size,
        # vLLM's own multiprocessing; Ray would need a placement group per engine.
        "distributed_executor_backend": "uni" if tp_size == 1 else "mp",
        "seed": seed,
        "max_model_len": max_model_len,
        "dtype": "bfloat16",
        "enforce_eager": args.enforce_eager,
        "num_gpus": 1,
        "agent_func_path": None,
        "remote_rm_url": None,
    }
    if memory_utilization is not None:
        options["gpu_memory_utilization"] = memory_utilization
    return (actor_class or LLMRayActor).options(num_cpus=0, num_gpus=1).remote(**{**options, **engine_options(args)})
