"""Weight sync against real vLLM workers: an engine with TP=2 and one with TP=1, healthy and with injected faults.

Every fault is one that went unnoticed in the system this repository replaces, and each must be named.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from faulty_worker import ForgetfulEngine

from gptoss_rl.errors import GateError, SyncError
from gptoss_rl.models.random_model import random_adapter, set_random_B
from gptoss_rl.run.canary import judge_restored, judge_shift
from gptoss_rl.sync.local_engine import engine_arguments, start_engine, start_ray
from gptoss_rl.sync.lora_sync import LoraSync
from gptoss_rl.training.parity import check_parity, difference_statistics
from gptoss_rl.training.policy import response_log_probs

pytestmark = pytest.mark.engine
WORKER = "faulty_worker.FaultyWorker"
RANK = 8
Q0 = "model.layers.0.self_attn.q_proj"


def parity(differences: torch.Tensor) -> dict[str, float]:
    return difference_statistics(differences, torch.arange(len(differences)))


@pytest.fixture(scope="module")
def engines(gpt_oss_folder: Path, tmp_path_factory) -> Iterator[list]:
    """Engine 0 with TP=2, engine 1 with TP=1. The tokenizer is never used: prompts are token ids."""
    start_ray(devices=2, extra_path=Path(__file__).parent)
    started = []
    for tp_size in (2, 1):
        args = engine_arguments(lora_rank=RANK, vllm_tensor_parallel_size=tp_size, enforce_eager=True, vllm_max_num_seqs=16)
        started.append(start_engine(gpt_oss_folder, args, max_model_len=256, worker=WORKER, actor_class=ForgetfulEngine))
    yield started
    for engine in started:
        ray.kill(engine)
    ray.shutdown()


@pytest.fixture(scope="module")
def trainer(gpt_oss_folder: Path) -> torch.nn.Module:
    return random_adapter(gpt_oss_folder, rank=RANK)


@pytest.fixture
def sync(engines: list, trainer: torch.nn.Module) -> Iterator[LoraSync]:
    """A sync whose engines have just been brought to one healthy policy; versions never repeat."""
    clear_faults(engines)
    set_random_B(trainer, seed=5)
    sync = LoraSync(trainer, engines, mode="adapter", timeout=240, first_version=next(VERSIONS))
    sync.sync()
    set_random_B(trainer, seed=6)  # the next sync has something new to bring
    yield sync
    clear_faults(engines)


VERSIONS = iter(range(0, 10_000, 100))


def clear_faults(engines: list) -> None:
    for engine in engines:
        set_fault(engine, "")


def set_fault(engine, fault: str, rank: int = -1) -> None:
    ray.get(engine.call_workers.remote("policy_set_fault", fault, rank))


SEQUENCES = [[5 + (7 * i * j) % 300 for i in range(40)] for j in (1, 2, 3)]


def sampler_scores(engine) -> torch.Tensor:
    return torch.cat([torch.tensor(s) for s in ray.get(engine.score.remote(SEQUENCES))])


@torch.no_grad()
def trainer_scores(model: torch.nn.Module) -> torch.Tensor:
    rows = []
    for tokens in SEQUENCES:
        ids = torch.tensor([tokens])
        mask = torch.ones(1, len(tokens) - 1, dtype=torch.long)
        positions = torch.arange(len(tokens)).unsqueeze(0)
        rows.append(response_log_probs(model, ids, mask, torch.ones_like(ids), positions, 1.0)[0][0])
    return torch.cat(rows)


def test_every_worker_proves_what_it_serves(sync: LoraSync) -> None:
    record = sync.sync()
    assert record["workers"] == 3  # two TP ranks and one
    assert record["modules"] == 2 * 4
    assert record["nbytes"] == sum(p.numel() for p in sync.parameters.values()) * 2


def test_the_engine_stamps_its_policy_version(sync: LoraSync) -> None:
    record = sync.sync()
    for engine in sync.engines:
        assert ray.get(engine.current_policy_version.remote()) == record["policy_version"]


def test_trainer_and_sampler_are_one_model_before_and_after_a_sync(sync: LoraSync, trainer) -> None:
    before = trainer_scores(trainer)
    sync.sync()
    for engine in sync.engines:
        figures = parity(before - sampler_scores(engine))
        check_parity(figures, 0.05, 0.01, "test")


def test_the_canary_sees_the_sampler_follow_the_trainer_and_return(sync: LoraSync, trainer) -> None:
    engine = sync.engines[0]
    sync.sync()
    first_trainer, first_sampler = trainer_scores(trainer), sampler_scores(engine)
    set_random_B(trainer, seed=7)
    sync.sync()
    judge_shift(trainer_scores(trainer) - first_trainer, sampler_scores(engine) - first_sampler, std=0.1)
    set_random_B(trainer, seed=6)
    sync.sync()
    judge_restored(trainer_scores(trainer) - first_trainer, sampler_scores(engine) - first_sampler)


def test_a_sampler_that_ignores_the_adapter_is_caught(sync: LoraSync, trainer) -> None:
    # Every proof of the sync holds; only the comparison of logprobs can tell.
    engine = sync.engines[1]
    ray.get(engine.set_forgetful.remote(True))
    try:
        sync.sync()
        trainer_before, sampler_before = trainer_scores(trainer), sampler_scores(engine)
        set_random_B(trainer, seed=7)
        sync.sync()
        trainer_after, sampler_after = trainer_scores(trainer), sampler_scores(engine)
    finally:
        ray.get(engine.set_forgetful.remote(False))
    with pytest.raises(GateError, match="gate canary.*ignores the adapter"):
        judge_shift(trainer_after - trainer_before, sampler_after - sampler_before, std=0.1)
    with pytest.raises(GateError, match="gate parity"):
        check_parity(parity(trainer_after - sampler_after), 0.05, 0.01, "test")


def test_attention_without_sinks_is_caught_by_the_parity_gate(sync: LoraSync, trainer) -> None:
    sync.sync()
    kept = {}
    for name, parameter in trainer.named_parameters():
        if name.endswith("sinks"):
            kept[name] = parameter.detach().clone()
            parameter.data.fill_(-1e4)  # what a kernel that drops the sinks computes
    try:
        figures = parity(trainer_scores(trainer) - sampler_scores(sync.engines[0]))
        with pytest.raises(GateError, match="gate parity.*without sinks"):
            check_parity(figures, 0.05, 0.01, "test")
    finally:
        for name, parameter in trainer.named_parameters():
            if name in kept:
                parameter.data.copy_(kept[name])


@pytest.mark.parametrize("fault", ["drop", "stale", "accumulate"])
def test_a_worker_that_serves_something_else_is_named(sync: LoraSync, fault: str) -> None:
    set_fault(sync.engines[1], fault)
    with pytest.raises(SyncError, match=r"engine 1, worker of TP rank 0: module model\.layers\.\d\.self_attn\.\w+ serves"):
        sync.sync()


def test_an_adapter_delivered_to_one_tp_rank_only_names_the_other(sync: LoraSync) -> None:
    set_fault(sync.engines[0], "skip", rank=1)
    with pytest.raises(SyncError, match=r"engine 0, worker of TP rank 1: serves policy version \d+, expected \d+"):
        sync.sync()


def test_an_adapter_delivered_to_one_engine_only_names_the_other(sync: LoraSync) -> None:
    set_fault(sync.engines[1], "skip")
    with pytest.raises(SyncError, match="engine 1, worker of TP rank 0: serves policy version"):
        sync.sync()


def deliver_changed(sync: LoraSync, change) -> None:
    """Sync with the manifest or the payload changed on the way, as a fault in between would."""
    original = sync.deliver

    def deliver(manifest, payload):
        manifest, data = change(manifest, np.array(ray.get(payload)))
        return original(manifest, ray.put(data))

    sync.deliver = deliver
    sync.sync()


def test_a_wrong_scale_is_named(sync: LoraSync) -> None:
    with pytest.raises(SyncError, match=r"engine 0, worker of TP rank 0: module .*serves"):
        deliver_changed(sync, lambda m, d: (dataclasses.replace(m, scaling=m.scaling / 2), d))


def test_an_adapter_served_at_half_its_scale_is_caught_by_the_canary_too(sync: LoraSync, trainer) -> None:
    # As if the digests had been taken of what was sent: the engine serves the scaled adapter all the same.
    engine = sync.engines[1]
    for (_, matrix), parameter in sync.parameters.items():
        if matrix == "B":
            parameter.data.zero_()  # as it is before step 1
    sync.sync()
    trainer_before, sampler_before = trainer_scores(trainer), sampler_scores(engine)
    set_random_B(trainer, seed=7)
    with pytest.raises(SyncError, match=r"engine 0, worker of TP rank 0: module .*serves"):
        deliver_changed(sync, lambda m, d: (dataclasses.replace(m, scaling=m.scaling / 2), d))
    with pytest.raises(GateError, match="gate canary.*another scale"):
        judge_shift(trainer_scores(trainer) - trainer_before, sampler_scores(engine) - sampler_before, std=0.1)


def test_a_missing_module_is_named(sync: LoraSync) -> None:
    def drop(manifest, data):
        return dataclasses.replace(manifest, tensors=tuple(t for t in manifest.tensors if t.module != Q0)), data

    with pytest.raises(SyncError, match=f"engine 0.*missing: {Q0}"):
        deliver_changed(sync, drop)


def test_a_misspelt_module_is_named(sync: LoraSync) -> None:
    def misspell(manifest, data):
        slots = (dataclasses.replace(t, module=t.module.replace("o_proj", "out_proj")) for t in manifest.tensors)
        return dataclasses.replace(manifest, tensors=tuple(slots)), data

    with pytest.raises(SyncError, match=r"engine 0.*missing: model\.layers\.0\.self_attn\.o_proj.*unknown: .*out_proj"):
        deliver_changed(sync, misspell)


def test_a_flipped_byte_is_caught_before_it_is_applied(sync: LoraSync) -> None:
    before = sampler_scores(sync.engines[0])

    def flip(manifest, data):
        data[len(data) // 2] ^= 1
        return manifest, data

    with pytest.raises(SyncError, match="engine 0, worker of TP rank 0: the payload's SHA-256"):
        deliver_changed(sync, flip)
    assert torch.equal(sampler_scores(sync.engines[0]), before)


def test_a_nan_in_the_adapter_is_never_sent(sync: LoraSync, trainer) -> None:
    before = sampler_scores(sync.engines[0])
    parameter = sync.parameters[Q0, "B"]
    parameter.data[0, 0] = float("nan")
    with pytest.raises(GateError, match=f"gate finite.*lora_B of {Q0}"):
        sync.sync()
    assert torch.equal(sampler_scores(sync.engines[0]), before)


def test_after_a_failed_sync_a_healthy_one_still_works(sync: LoraSync) -> None:
    set_fault(sync.engines[0], "drop")
    with pytest.raises(SyncError):
        sync.sync()
    clear_faults(sync.engines)
    sync.sync()
