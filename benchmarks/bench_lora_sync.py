# ruff: noqa: E402  (the environment must be set before torch, Ray and DeepSpeed are imported)
"""LoRA sync at gpt-oss-20b's real adapter size, between real processes on this machine's CPU.

Makes a random checkpoint with gpt-oss-20b's attention (24 layers, hidden 2880, 64 query and 8 key-value heads of 64) and
next to no experts or vocabulary, because only attention is adapted: 15,925,248 LoRA parameters in 192 tensors, 31.9 MB in
bf16. The adapter is gathered from DeepSpeed ZeRO-3 in this process and proven by the workers of real vLLM engines.
The original system's way, one remote call per tensor and no proof, is measured in the same run on the same engines.

    python benchmarks/bench_lora_sync.py                        # two engines, TP=1, adapter mode
    python benchmarks/bench_lora_sync.py --repeats 20 --output results/2026-11-23_lora-sync/sync.json
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

for name, value in {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
}.items():
    os.environ.setdefault(name, value)

import deepspeed
import ray
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

from gptoss_rl.models.random_model import random_adapter, save_random_gpt_oss
from gptoss_rl.run_files import write_json_atomically
from gptoss_rl.sync.local_engine import engine_arguments, start_engine, start_ray
from gptoss_rl.sync.lora_sync import LoraSync

# gpt-oss-20b's config.json, attention part.
ATTENTION = {
    "num_hidden_layers": 24,
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
STAND_INS = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 32}
RANK = 32


def partitioned_model(folder: Path):
    """The adapter's model inside a DeepSpeed ZeRO-3 engine, as the policy actor holds it."""
    model = random_adapter(folder, rank=RANK, dtype=torch.bfloat16)
    trainable = [p for p in model.parameters() if p.requires_grad]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
        "bf16": {"enabled": True},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=DeepSpeedCPUAdam(trainable), config=config)
    return engine.module


def measure_proven(sync: LoraSync, repeats: int) -> list[dict[str, float]]:
    """Seconds by phase of each sync; the first one, which warms caches, is left out."""
    records = [sync.sync()["seconds"] for _ in range(repeats + 1)]
    return records[1:]


def measure_per_tensor(sync: LoraSync, repeats: int) -> list[float]:
    """Seconds of a sync that gathers and sends every tensor by a call of its own, as the original did."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for (module, matrix), parameter in sync.parameters.items():
            with deepspeed.zero.GatheredParameters([parameter]):
                data = parameter.detach().contiguous().view(torch.uint8).numpy().tobytes()
            ray.get([e.call_workers.remote("receive_tensor", f"{module}.{matrix}", data) for e in sync.engines])
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def run(args: argparse.Namespace) -> dict[str, Any]:
    start_ray(devices=args.engines, extra_path=Path(__file__).resolve().parent)
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        folder = Path(name)
        save_random_gpt_oss(folder, std=0.02, **ATTENTION, **STAND_INS)
        flags = engine_arguments(lora_rank=RANK, enforce_eager=True, vllm_max_num_seqs=4)
        engines = [
            start_engine(folder, flags, max_model_len=64, worker="per_tensor_worker.PerTensorWorker")
            for _ in range(args.engines)
        ]
        model = partitioned_model(folder)
        sync = LoraSync(model, engines, mode="adapter", timeout=600)
        record = sync.sync()
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in sync.parameters.values())
        print(f"{parameters:,} LoRA parameters, {len(sync.parameters)} tensors, {record['nbytes'] / 1e6:.1f} MB, "
              f"{len(engines)} engines")  # fmt: skip
        proven, per_tensor = [], []
        for _ in range(args.repeats):  # side by side: the machine's speed drifts
            proven += measure_proven(sync, 1)
            per_tensor += measure_per_tensor(sync, 1)
    medians = {phase: statistics.median(r[phase] for r in proven) for phase in proven[0]}
    return {
        "parameters": parameters,
        "tensors": len(sync.parameters),
        "nbytes": record["nbytes"],
        "engines": len(engines),
        "repeats": args.repeats,
        "seconds_median": medians,
        "seconds_max": max(r["total"] for r in proven),
        "per_tensor_seconds_median": statistics.median(per_tensor),
        "ratio_median": statistics.median(b / a["total"] for a, b in zip(proven, per_tensor, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, default=2, help="engines of TP=1")
    parser.add_argument("--repeats", type=int, default=10, help="measured syncs of each kind")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the 1.4 GB checkpoint; default: the system's")
    parser.add_argument("--output", type=Path, default=None, help="also write the figures as JSON")
    args = parser.parse_args()
    result = run(args)
    for phase, seconds in result["seconds_median"].items():
        print(f"{phase:>14s}  {seconds:7.3f} s")
    print(f"one call a tensor, no proof: {result['per_tensor_seconds_median']:.3f} s, "
          f"{result['ratio_median']:.1f} times as long (medians of {result['repeats']})")  # fmt: skip
    if args.output:
        write_json_atomically(args.output, result)


if __name__ == "__main__":
    main()
