"""In a process of its own: one rank of a real DeepSpeed ZeRO-3 that takes one planned step over gloo, and what it holds then.

    MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 python tests/deepspeed_ranks.py MODEL OUTPUT CLIP

Rank 0 writes OUTPUT: the norm that the step reports, every gradient before the optimizer step, and Adam's first moments.
"""

import os
import sys

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.utils import safe_get_full_grad, safe_get_full_optimizer_state
from planned import GROUP, REWARDS, FakeActor, make_plans, make_samples, training

from gptoss_rl.models.random_model import random_adapter
from gptoss_rl.training.train_plan import group_advantages

folder, target, clip = sys.argv[1:]
rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
policy = random_adapter(folder, rank=4)
samples = make_samples(len(REWARDS), policy.config.vocab_size)
config = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 8,  # as configured by hand; the plan has another number of micro-batches
    "gradient_clipping": float(clip),
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
}
trainable = [p for p in policy.parameters() if p.requires_grad]
engine, *_ = deepspeed.initialize(model=policy, optimizer=DeepSpeedCPUAdam(trainable, lr=1e-3), config=config)
plan = make_plans(samples, group_advantages(REWARDS, GROUP), ranks=ranks, micro_batch_size=3)[rank]
named = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
gradients = {}


def optimizer_step() -> None:
    if engine.is_gradient_accumulation_boundary():
        gradients.update({name: safe_get_full_grad(p).clone() for name, p in named.items()})
    engine.step()


run = training(policy, len(samples), optimizer_step=optimizer_step)
actor = FakeActor(policy)
actor.model = engine
run.actor, run.engine, run.device = actor, engine, "cpu"
figures = run.run(plan)
moments = {name: safe_get_full_optimizer_state(p, "exp_avg").clone() for name, p in named.items()}
if rank == 0:
    torch.save({"norm": figures["optimizer/gradient_norm"], "gradients": gradients, "moments": moments}, target)
# A rank that leaves while another still talks to it may take that one down.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
