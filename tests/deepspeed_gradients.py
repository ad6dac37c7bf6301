"""In a process of its own: the gradient that a real DeepSpeed ZeRO-3 engine holds at the end of a planned step."""

import os
import sys

os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[3], "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from planned import GROUP, REWARDS, FakeActor, make_plans, make_samples, training

from gptoss_rl.models.random_model import random_adapter
from gptoss_rl.training.policy import local_gradients
from gptoss_rl.training.train_plan import group_advantages

folder, target = sys.argv[1:3]
policy = random_adapter(folder, rank=4)
samples = make_samples(len(REWARDS), policy.config.vocab_size)
config = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 8,  # as configured by hand; the plan has another number of micro-batches
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
}
trainable = [p for p in policy.parameters() if p.requires_grad]
engine, *_ = deepspeed.initialize(model=policy, optimizer=DeepSpeedCPUAdam(trainable, lr=1e-3), config=config)
(plan,) = make_plans(samples, group_advantages(REWARDS, GROUP), micro_batch_size=3)
held = {}


def optimizer_step() -> None:
    if engine.is_gradient_accumulation_boundary():
        held.update({name: grad.detach().clone().cpu() for name, grad in local_gradients(engine.module).items()})
    engine.step()


run = training(policy, len(samples), optimizer_step=optimizer_step)
actor = FakeActor(policy)
actor.model = engine
run.actor, run.engine, run.device = actor, engine, "cpu"
figures = run.run(plan)
torch.save({"gradients": held, "steps": figures["optimizer/steps"], "engine_steps": engine.global_steps}, target)
