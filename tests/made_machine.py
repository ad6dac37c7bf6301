"""Machines, flags and checkpoints that tests of the preflight make up."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models

from gptoss_rl.doctor import Machine
from gptoss_rl.prompts import HARMONY_MARKERS
from gptoss_rl.sync.local_engine import engine_arguments

A30 = {"name": "NVIDIA A30", "memory_gb": 25.2, "used_gb": 0.0, "capability": 8.0, "driver": 580}
TRAINER, ENGINE = "memory of each trainer card (estimate)", "memory of each engine card (estimate)"


def node(count: int = 8, **changes) -> Machine:
    host = {"memory_gb": 512, "shm_gb": 64, "disk_gb": 500, "temporary_used": 0.2, "links": ["NV4"] * (count // 2)}
    host |= {key: changes.pop(key) for key in list(changes) if key in host and key != "memory_gb"}
    return Machine([{**A30, **changes} for _ in range(count)], **host)


def host(**changes) -> Machine:
    return Machine(**{"gpus": [], "memory_gb": 512, "shm_gb": 64, "disk_gb": 500, **changes})


def arguments(**changes):
    good = {
        "vllm_num_engines": 2, "vllm_tensor_parallel_size": 2, "actor_num_gpus_per_node": 4, "micro_train_batch_size": 2,
        "micro_batch_max_tokens": 5120, "prompt_max_len": 1024, "generate_max_len": 4096, "offload": True, "pretrain": "no",
        "num_devices": None, "lora_rank": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "rollout_batch_size": 16, "n_samples_per_prompt": 8, "train_batch_size": 16, "micro_rollout_batch_size": 2,
        "vllm_max_num_seqs": 64, "eval_steps": 20, "save_steps": 20, "max_ckpt_num": 3, "actor_learning_rate": 1e-5,
        "lr_scheduler": "cosine_with_min_lr", "lr_warmup_ratio": 0.03, "loss_normalizer": "constant",
        "gradient_checkpointing": True,
    }  # fmt: skip
    return engine_arguments(**{**good, **changes})


def levels(findings) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


def model(folder: Path, markers: bool = True, weights: dict | None = None, **config) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "vocab_size": 10, **config}))
    save_file(weights or {"model.norm.weight": torch.ones(4, dtype=torch.bfloat16)}, folder / "model.safetensors")
    tokenizer = Tokenizer(models.BPE())
    if markers:
        tokenizer.add_special_tokens([AddedToken(m, special=True) for m in HARMONY_MARKERS])
    else:
        tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("<|>startendmgchlor")}, merges=[]))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
