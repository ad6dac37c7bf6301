"""Real vLLM engines that cannot start or lose a process while the policy loads: the run stops by the engine's own error."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from gptoss_rl.errors import GateError
from gptoss_rl.run.parts import Parts
from gptoss_rl.sync.local_engine import engine_arguments, start_engine, start_ray

pytestmark = pytest.mark.engine


@pytest.fixture
def cluster() -> Iterator[None]:
    """A Ray of this test's own: who dies in it takes nothing from another test."""
    start_ray(devices=1)
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
def load(seconds: float) -> None:
    """A policy that takes its time."""
    time.sleep(seconds)


def stop_of(engine, ref) -> str:
    parts = Parts()
    parts.watch("engine", [engine])
    with pytest.raises(GateError) as caught:
        parts.get(ref, "the policy was loading")
    assert not ray.wait([ref], timeout=0)[0], "it was noticed only when the policy had loaded"
    return str(caught.value)


def test_an_engine_that_cannot_start_stops_the_run_by_its_own_error(
    cluster: None, gpt_oss_folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(gpt_oss_folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    engine = start_engine(broken, engine_arguments(enforce_eager=True), max_model_len=256)
    message = stop_of(engine, load.remote(600))
    assert re.match(r"\[gate parts\] engine 0 died while the policy was loading: .*NoSuchModel", message)


@pytest.mark.parametrize(("tp_size", "title"), [(2, "VLLM::Worker_TP1"), (1, "VLLM::EngineCore")])
def test_an_engine_whose_process_is_killed_stops_the_run(cluster: None, gpt_oss_folder: Path, tp_size: int, title: str) -> None:
    args = engine_arguments(vllm_tensor_parallel_size=tp_size, enforce_eager=True, vllm_max_num_seqs=16)
    engine = start_engine(gpt_oss_folder, args, max_model_len=256)
    actor = psutil.Process(ray.get(engine.__ray_call__.remote(lambda self: os.getpid())))
    (victim,) = [p for p in actor.children(recursive=True) if title in " ".join(p.cmdline())]
    ref = load.remote(600)
    victim.kill()
    assert "[gate parts] engine 0 died while the policy was loading: " in stop_of(engine, ref)
