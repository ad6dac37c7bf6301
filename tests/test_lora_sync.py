"""The judge of a sync, against hand-made answers: what real workers cannot be made to say."""

import argparse
import asyncio
import copy
import json
import pickle
import sys
import types

import numpy as np
import pytest
import ray
import torch

from gptoss_rl.errors import GateError, SyncError
from gptoss_rl.models.random_model import random_adapter
from gptoss_rl.run.controller import RunController
from gptoss_rl.run_files import read_json_lines
from gptoss_rl.sync import engine as engine_module
from gptoss_rl.sync.engine import PolicyEngine
from gptoss_rl.sync.lora_payload import expected_digests, pack
from gptoss_rl.sync.lora_sync import LoraSync, counts, lora_parameters, lora_scaling
from gptoss_rl.watch.run_view import FILES

RANK = 4


@pytest.fixture(scope="module")
def sync(gpt_oss_folder) -> LoraSync:
    return LoraSync(random_adapter(gpt_oss_folder, rank=RANK), ["engine 0", "engine 1"], mode="adapter", timeout=1)


@pytest.fixture
def exchange(sync: LoraSync):
    """A manifest, the matrices, and the replies of two healthy engines of TP=2."""
    matrices = sync.gather()
    manifest, _ = pack(matrices, version=7, rank=RANK, scaling=sync.scaling)
    modules = manifest.modules()

    def answer(tp_rank: int) -> dict:
        digests = expected_digests(matrices, modules, sync.layout, sync.scaling, tp_rank, 2)
        header = {
            "tp_rank": tp_rank,
            "tp_size": 2,
            "version": 7,
            "payload_sha256": manifest.sha256,
            "error": None,
        }
        return {**header, "modules": digests, "seconds": {"apply": 0.0}}

    replies = [{"answers": [answer(0), answer(1)], "in_flight": 0, "cache_reset": True, "seconds": 0.0} for _ in range(2)]
    return manifest, matrices, replies


def test_healthy_answers_pass(sync: LoraSync, exchange) -> None:
    sync.judge(*exchange)


def change(replies: list, engine: int, worker: int, **fields) -> list:
    changed = copy.deepcopy(replies)
    changed[engine]["answers"][worker].update(fields)
    return changed


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 6}, "serves policy version 6, expected 7"),
        ({"payload_sha256": "0" * 64}, "received bytes with SHA-256 000"),
        ({"error": "OutOfMemoryError: no"}, "OutOfMemoryError"),
        ({"modules": {}}, "modules missing or extra"),
    ],
)
def test_a_bad_answer_names_engine_and_worker(sync: LoraSync, exchange, fields: dict, words: str) -> None:
    manifest, matrices, replies = exchange
    with pytest.raises(SyncError, match=f"engine 1, worker of TP rank 1: {words}"):
        sync.judge(manifest, matrices, change(replies, 1, 1, **fields))


def test_one_wrong_digest_names_the_module(sync: LoraSync, exchange) -> None:
    manifest, matrices, replies = exchange
    module = manifest.modules()[3]
    digests = {**replies[0]["answers"][1]["modules"], module: "f" * 16}
    with pytest.raises(SyncError, match=f"engine 0, worker of TP rank 1: module {module} serves ffff"):
        sync.judge(manifest, matrices, change(replies, 0, 1, modules=digests))


def test_an_extra_module_is_named(sync: LoraSync, exchange) -> None:
    manifest, matrices, replies = exchange
    digests = {**replies[0]["answers"][0]["modules"], "lm_head": "f" * 16}
    with pytest.raises(SyncError, match="lm_head"):
        sync.judge(manifest, matrices, change(replies, 0, 0, modules=digests))


def test_an_engine_that_is_left_out_is_named(sync: LoraSync, exchange) -> None:
    manifest, matrices, replies = exchange
    with pytest.raises(SyncError, match="1 engines answered, 2 were asked"):
        sync.judge(manifest, matrices, replies[:1])


@pytest.mark.parametrize("answers", [[], [0], [0, 0], [0, 1, 1]])
def test_every_tp_rank_must_answer_once(sync: LoraSync, exchange, answers: list[int]) -> None:
    manifest, matrices, replies = copy.deepcopy(exchange)
    replies[0]["answers"] = [replies[0]["answers"][i] for i in answers]
    with pytest.raises(SyncError, match="engine 0: answers from TP ranks"):
        sync.judge(manifest, matrices, replies)


def test_requests_in_flight_stop_the_sync(sync: LoraSync, exchange) -> None:
    manifest, matrices, replies = exchange
    busy = [replies[0], {"answers": [], "in_flight": 3, "cache_reset": False, "seconds": 0.0}]
    with pytest.raises(SyncError, match="engine 1 still had 3 requests in flight"):
        sync.judge(manifest, matrices, busy)


class StubEngine(PolicyEngine):
    """One worker that serves what it is sent, and a prefix cache that is in use the first `refusals` times."""

    def __init__(self, refusals: int, answer: dict, additional_config: dict):
        self.refusals, self.answer, self.llm = refusals, answer, self
        self.kwargs = {"additional_config": additional_config}

    def get_num_unfinished_requests(self) -> int:
        return 0

    async def call_workers(self, method: str, *args) -> list[dict]:
        return [self.answer]

    async def reset_prefix_cache(self) -> bool:
        self.refusals -= 1
        return self.refusals < 0


def sync_stub(monkeypatch, manifest, refusals: int, **config) -> tuple[StubEngine, dict]:
    # Importing vLLM takes ten seconds, and nothing of it is under test.
    monkeypatch.setitem(sys.modules, "vllm.lora.request", types.SimpleNamespace(LoRARequest=dict))
    monkeypatch.setattr(engine_module, "CACHE_RESET_SECONDS", 0.25)
    stub = StubEngine(refusals, {"error": None, "version": manifest.version}, config)
    return stub, asyncio.run(stub.sync_policy(manifest.to_json(), np.zeros(1, dtype=np.uint8)))


@pytest.mark.parametrize("config", [{}, {"gptoss_rl_merge": True}])
def test_an_engine_that_keeps_an_older_policys_cache_is_named(sync: LoraSync, exchange, monkeypatch, config: dict) -> None:
    # vLLM says so by returning False. In merge mode a prompt would be continued from the older policy's keys and values.
    manifest, matrices, replies = exchange
    stub, reply = sync_stub(monkeypatch, manifest, refusals=1000, **config)
    assert stub.policy_version == 0  # no response is stamped with a policy that it may not come from
    with pytest.raises(SyncError, match="engine 1: vLLM did not reset its prefix cache for policy version 7"):
        sync.judge(manifest, matrices, [replies[0], {**reply, "answers": replies[1]["answers"]}])


def test_a_cache_that_is_free_a_moment_later_is_reset(sync: LoraSync, exchange, monkeypatch) -> None:
    manifest, matrices, replies = exchange
    stub, reply = sync_stub(monkeypatch, manifest, refusals=1)
    assert (stub.policy_version, stub.refusals) == (7, -1)
    sync.judge(manifest, matrices, [replies[0], {**reply, "answers": replies[1]["answers"]}])


def test_an_engine_that_does_not_answer_is_named(sync: LoraSync, exchange) -> None:
    @ray.remote
    class Engine:
        def __init__(self, silent: bool):
            self.silent = silent

        async def sync_policy(self, manifest_json, payload):
            await asyncio.sleep(600 if self.silent else 0)
            return {"answers": [], "in_flight": 0, "cache_reset": True, "seconds": 0.0}

    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        engines = [Engine.options(num_cpus=0).remote(silent) for silent in (False, True)]
        ray.get(engines[0].sync_policy.remote("", None))
        slow = LoraSync(sync.model, engines, mode="adapter", timeout=3)
        with pytest.raises(SyncError, match=r"engine 1 did not answer within 3 s for policy version 7 \(1 of 2") as caught:
            slow.deliver(exchange[0], ray.put(b""))
        assert [reply["answers"] for reply in caught.value.record["replies"]] == [[]]
    finally:
        ray.shutdown()


def test_a_failed_sync_knows_what_was_answered(sync: LoraSync, exchange, monkeypatch) -> None:
    replies = change(exchange[2], 0, 0, error="OutOfMemoryError: no")
    monkeypatch.setattr(ray, "put", lambda array: array)
    monkeypatch.setattr(sync, "deliver", lambda manifest, payload: replies)
    with pytest.raises(SyncError, match="OutOfMemoryError") as caught:
        sync.sync()
    record = pickle.loads(pickle.dumps(caught.value)).record  # it crosses two processes on its way to the controller
    assert (record["policy_version"], record["engines"], record["workers"]) == (sync.version, 2, 4)
    assert record["error"] == str(caught.value)
    assert json.loads(json.dumps(record))["replies"] == replies
    assert record["seconds"].keys() == {"gather", "pack", "put", "deliver", "judge", "total"}


def test_a_failed_sync_is_in_the_runs_files_before_the_run_stops(sync: LoraSync, exchange, tmp_path) -> None:
    replies = change(exchange[2], 1, 0, error="OutOfMemoryError: no")
    record = {"policy_version": 8, "mode": "adapter", "modules": 96, **counts(replies), "error": "[gate sync] engine 1"}

    class Rank:
        def __init__(self, error: Exception):
            self.error = error

        def broadcast_to_vllm(self):
            raise self.error

    flags = argparse.Namespace(run_dir=str(tmp_path), max_mismatch_kl=0, mismatch_patience=1, vllm_lora_sync="adapter")
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        for error, kind, words in (
            (SyncError("engine 1", **record), SyncError, "engine 1"),
            (GateError("finite", "lora_B holds NaN"), GateError, "lora_B holds NaN"),
            (RuntimeError("a bug"), RuntimeError, "a bug"),
        ):
            rank = ray.remote(Rank).options(num_cpus=0).remote(error)
            group = types.SimpleNamespace(async_run_method=lambda method_name, rank=rank: [getattr(rank, method_name).remote()])
            with pytest.raises(kind, match=words):
                RunController(flags).sync_policy(group)
    finally:
        ray.shutdown()
    first, *others = read_json_lines(tmp_path / "sync.jsonl")
    assert {key: first[key] for key in record} == record
    assert [line["error"] for line in others] == ["[gate finite] lora_B holds NaN", "a bug"]
    # Whoever reads the file needs these of every line.
    assert all(line.keys() >= set(FILES["sync"]) for line in (first, *others))


def test_a_model_without_an_adapter_is_refused() -> None:
    with pytest.raises(GateError, match="no LoRA parameters"):
        lora_parameters(torch.nn.Linear(2, 2))


def test_layers_of_different_scaling_are_refused(gpt_oss_folder) -> None:
    model = random_adapter(gpt_oss_folder, rank=RANK)
    next(m for m in model.modules() if hasattr(m, "lora_A")).scaling["default"] = 17.0
    with pytest.raises(GateError, match=r"different scalings \[2\.0, 17\.0\]"):
        lora_scaling(model)


def test_errors_cross_processes_with_their_text() -> None:
    error = pickle.loads(pickle.dumps(SyncError("engine 0: bad")))
    assert type(error) is SyncError
    assert (str(error), error.gate) == ("[gate sync] engine 0: bad", "sync")
