"""A resumed run is the run that it was: its flags, prompts and problems are those that its last life recorded."""

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from gptoss_rl.data.files import sha256
from gptoss_rl.errors import GateError
from gptoss_rl.flags import ParityLimits
from gptoss_rl.prompts import prompt_fingerprint
from gptoss_rl.run.directory import is_failed_start
from gptoss_rl.run_files import read_json

FILES = ("prompt_data", "eval_dataset")  # compared by content, wherever they lie
# What decides neither what is trained nor what is measured. A flag that is not named here stays.
MAY_CHANGE = frozenset({
    *FILES, "run_dir", "save_path", "load_checkpoint", "allow_short", "local_rank",
    # how often, and how much is kept
    "eval_steps", "save_steps", "logging_steps", "max_ckpt_num", "max_ckpt_mem",
    # trackers
    "use_wandb", "wandb_org", "wandb_group", "wandb_project", "wandb_run_name", "use_tensorboard", "perf",
    # limits of gates
    *(limit.name for limit in fields(ParityLimits)), "canary_prompts", "vllm_sync_timeout", "reward_timeout",
    # memory, and where the engines run
    "micro_rollout_batch_size", "micro_batch_max_tokens", "logprob_chunk_rows", "gradient_checkpointing",
    "gradient_checkpointing_use_reentrant", "num_devices", "vllm_num_engines", "vllm_tensor_parallel_size",
    "vllm_executor_backend", "vllm_gpu_memory_utilization", "vllm_max_num_seqs", "vllm_max_num_batched_tokens",
    "vllm_max_cudagraph_capture_size", "enforce_eager",
})  # fmt: skip


def record_of(args: argparse.Namespace) -> dict[str, Any]:
    """What config.json says of a life: every flag, resolved, and digests of the prompt and of the files of problems."""
    digests = {f"{name}_sha256": sha256(Path(path)) if (path := getattr(args, name)) else None for name in FILES}
    record = {**vars(args), "prompt_fingerprint": prompt_fingerprint(args.reasoning_effort), **digests}
    return json.loads(json.dumps(record, default=str))


def lives(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's lives, the oldest first."""
    resumed = sorted(folder.glob("config.resume*.json"), key=lambda path: int(path.stem.removeprefix("config.resume")))
    return [record for path in (folder / "config.json", *resumed) if (record := read_json(path))]


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two lives differ in that may not change, one `name old -> new` each."""
    old, new = (_that_stays(record) for record in (old, new))
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)]  # fmt: skip


def _that_stays(record: dict[str, Any]) -> dict[str, Any]:
    stays = {name: value for name, value in record.items() if name not in MAY_CHANGE}
    if {"ckpt_path", "run_dir"} <= record.keys():  # the run may have been moved, checkpoints and all
        stays["ckpt_path"] = os.path.relpath(record["ckpt_path"], record["run_dir"])
    return stays


def check_resume(args: argparse.Namespace) -> None:
    """Raises GateError unless there is a checkpoint, and the flags and files are those of the run's last life."""
    folder = Path(args.run_dir)
    if not Path(args.ckpt_path, "_actor", "latest").is_file():
        free = "; it took no step, so start it without --load_checkpoint" if is_failed_start(folder) else ""
        raise GateError("flags", f"--load_checkpoint: {args.ckpt_path} holds no checkpoint to resume from{free}")
    before = lives(folder)
    if not before:
        raise GateError("flags", f"--load_checkpoint: {folder} has no config.json, so nobody knows what is to be resumed")
    changed = changes(before[-1], record_of(args))
    if changed:
        raise GateError(
            "flags",
            f"--load_checkpoint goes on with the run in {folder}, and what it trains or measures would change: "
            f"{'; '.join(changed)}. Give the old values, or start another run in another --run_dir.",
        )
