"""In a process of its own: what a ZeRO-3 engine in bf16 makes of RoPE's frequencies, and what is left after restoring them."""

import json
import os
import sys
from pathlib import Path

os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2], "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})

import deepspeed
import torch
from transformers import GptOssForCausalLM
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from gptoss_rl.models.random_model import save_random_gpt_oss
from gptoss_rl.training.policy import restore_rotary_frequencies

# gpt-oss-20b's own YaRN, head size and window.
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096}  # fmt: skip
SHAPE = {"num_hidden_layers": 4, "head_dim": 64, "sliding_window": 128, "max_position_embeddings": 131072}
CONFIG = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 1}
TOKENS = torch.randint(3, 320, (1, 1500), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def log_probs(model: torch.nn.Module) -> torch.Tensor:
    return torch.log_softmax(model(TOKENS).logits[0, :-1].float(), -1).gather(1, TOKENS[0, 1:, None])[:, 0]


def load(folder: Path) -> GptOssForCausalLM:
    return GptOssForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").train()


folder = Path(sys.argv[1])
save_random_gpt_oss(folder, rope_scaling=YARN, **SHAPE)
plain = load(folder)
exact, expected = plain.model.rotary_emb.inv_freq.clone(), log_probs(plain)
deepspeed.init_distributed("gloo")
partitioned = HfDeepSpeedConfig(CONFIG)  # transformers loads under zero.Init while this is alive
engine, *_ = deepspeed.initialize(model=load(folder), config=CONFIG)
engine.module.train()


def figures() -> dict[str, float]:
    frequencies = engine.module.model.rotary_emb.inv_freq.float()
    difference = (log_probs(engine.module) - expected).abs()
    return {"frequency_error": ((frequencies - exact) / exact).abs().max().item(),
            "early": difference[:64].mean().item(), "late": difference[1000:].mean().item()}  # fmt: skip


before = figures()
restore_rotary_frequencies(engine.module)
print(json.dumps({"before": before, "after": figures()}))
