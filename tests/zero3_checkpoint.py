"""In a process of its own: ZeRO-3 engines with a checkpoint between them, as a trainer rank saves and loads it.

Prints a JSON object: what was loaded -> the message of the gate, or null.
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2], "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

from gptoss_rl.errors import GateError
from gptoss_rl.models.random_model import random_adapter, save_random_gpt_oss
from gptoss_rl.training.checkpoints import ADAPTER_FILES, load_lora_checkpoint, save_adapter, save_lora_checkpoint

work, dtype = Path(sys.argv[1]), sys.argv[3]
save_random_gpt_oss(work / "base")


def engine(seed: int) -> deepspeed.DeepSpeedEngine:
    """One whose adapter is noise of its own."""
    model = random_adapter(work / "base", rank=4, seed=seed)
    optimizer = DeepSpeedCPUAdam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "bf16": {"enabled": dtype == "bf16"}}
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def refusal(checkpoint: Path, seed: int) -> str | None:
    try:
        load_lora_checkpoint(engine(seed), str(checkpoint))
    except GateError as error:
        return str(error)
    return None


trained = engine(seed=1)
trained.backward(trained(torch.arange(5, 25).unsqueeze(0)).logits.float().log_softmax(-1)[0, :, 7].mean())
trained.step()
save_lora_checkpoint(trained, str(work / "whole"), "global_step1", {"global_step": 1}, keep=3)
# A checkpoint whose two halves are of two moments.
shutil.copytree(work / "whole", work / "mixed")
save_adapter(random_adapter(work / "base", rank=4, seed=1), work / "early")
for name in ADAPTER_FILES:
    shutil.copy(work / "early" / name, work / "mixed" / "global_step1" / "adapter" / name)
print(json.dumps({name: refusal(work / name, seed=2) for name in ("whole", "mixed")}))
