"""A part of a run that dies while another one is waited for: real Ray actors, without models."""

import asyncio
import os
import re
import signal
import time

import pytest
import ray

from gptoss_rl.errors import GateError, RewardError
from gptoss_rl.run.parts import Parts
from gptoss_rl.sync.cluster import ray_options
from gptoss_rl.sync.last_error import described, last_error
from gptoss_rl.sync.local_engine import engine_arguments


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(**{**ray_options(engine_arguments(num_devices=2)), "log_to_driver": False, "logging_level": "ERROR"})
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Worker:
    """A trainer's rank: one call at a time."""

    def __init__(self, error: str = ""):
        if error:
            raise ModuleNotFoundError(error)

    def pid(self) -> int:
        return os.getpid()

    def load(self, seconds: float, error: Exception | None = None) -> str:
        time.sleep(seconds)
        if error is not None:
            raise error
        return "loaded"

    def ask(self, other) -> str:
        return ray.get(other.load.remote(60))


@ray.remote(num_cpus=0)
class Engine:
    """An engine: asynchronous, and it looks after processes of its own."""

    def __init__(self) -> None:
        self.dead = False

    async def kill_process(self) -> None:
        self.dead = True

    async def outlive(self) -> None:
        while not self.dead:
            await asyncio.sleep(0.1)
        raise RuntimeError("torch.OutOfMemoryError: CUDA out of memory")


def watched(**handles) -> Parts:
    parts = Parts()
    for kind, handle in handles.items():
        parts.watch(kind, [handle])
    return parts


def failure(parts: Parts, ref, doing: str = "the policy was loading") -> str:
    """What the run would stop with, before what was waited for has come."""
    with pytest.raises(GateError) as caught:
        parts.get(ref, doing)
    return str(caught.value)


def still_loading(ref) -> bool:
    return not ray.wait([ref], timeout=0)[0]


def test_healthy_parts_are_waited_for_and_asked_again() -> None:
    engine, worker = Engine.remote(), Worker.remote()
    parts = watched(engine=engine, trainer=worker)
    assert parts.get(worker.load.remote(2.5), "loading") == "loaded"
    assert parts.get([worker.load.remote(0), worker.load.remote(0)], "loading") == ["loaded", "loaded"]


def test_an_error_in_a_constructor_is_said_while_the_other_loads() -> None:
    ref = Worker.remote().load.remote(60)
    message = failure(watched(engine=Worker.remote("No module named 'x'")), ref)
    start = "[gate parts] engine 0 died while the policy was loading: ModuleNotFoundError: No module named 'x'."
    assert message.startswith(start)
    assert re.search(r"begin with \(\.\.\. pid=\d+\)", message)
    assert still_loading(ref)


def test_a_killed_process_is_said_while_the_other_loads() -> None:
    victim = Worker.remote()
    pid = ray.get(victim.pid.remote())
    parts, ref = watched(engine=victim), Worker.remote().load.remote(60)
    os.kill(pid, signal.SIGKILL)
    assert f"engine 0 died while the policy was loading: its process {pid} was killed or crashed" in failure(parts, ref)
    assert still_loading(ref)


def test_an_engine_that_lost_its_processes_says_why() -> None:
    engine = Engine.remote()
    parts, ref = watched(engine=engine), Worker.remote().load.remote(60)
    ray.get(engine.kill_process.remote())
    message = failure(parts, ref, "the run was on its way")
    assert "engine 0 died while the run was on its way: torch.OutOfMemoryError: CUDA out of memory." in message
    assert still_loading(ref)


def test_the_part_that_died_is_named_not_who_waited_for_it() -> None:
    # The controller's call fails because the trainer is gone; which of the two Ray tells first is chance.
    controller, trainer = Worker.remote(), Worker.remote()
    pid = ray.get(trainer.pid.remote())
    parts, ref = watched(trainer=trainer), controller.ask.remote(trainer)
    time.sleep(1.0)
    os.kill(pid, signal.SIGKILL)
    message = failure(parts, ref, "the run was on its way")
    assert message.startswith("[gate parts] trainer 0 died while the run was on its way")


def test_a_gates_sentence_is_passed_on_as_it_is() -> None:
    worker = Worker.remote()
    message = failure(watched(trainer=worker), worker.load.remote(0, RewardError("the reward is late")))
    assert message == "[gate reward] the reward is late"


def test_an_error_of_a_part_that_lives_keeps_its_type() -> None:
    worker = Worker.remote()
    with pytest.raises(FileNotFoundError, match="weights are missing"):
        watched(trainer=worker).get(worker.load.remote(0, FileNotFoundError("weights are missing")), "loading")


LOG = """\
(EngineCore_DP0 pid=7) INFO 11-30 20:00:00 [core.py:96] Initializing a V1 LLM engine
(Worker_TP1 pid=9) ERROR 11-30 20:00:09 [multiproc_executor.py:772] WorkerProc failed to start.
(Worker_TP1 pid=9) ERROR 11-30 20:00:09 [multiproc_executor.py:772] Traceback (most recent call last):
(Worker_TP1 pid=9) ERROR 11-30 20:00:09 [multiproc_executor.py:772]   File "x.py", line 1, in load
(Worker_TP1 pid=9) ERROR 11-30 20:00:09 [multiproc_executor.py:772]     raise ValueError("inner: no")
(Worker_TP1 pid=9) ERROR 11-30 20:00:09 [multiproc_executor.py:772] {cause}
(EngineCore_DP0 pid=7) Exception: WorkerProc initialization failed due to an exception in a background process. See stack \
trace for root cause.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""


@pytest.mark.parametrize(
    "cause",
    ["ModuleNotFoundError: No module named 'x'", "torch.OutOfMemoryError: CUDA out of memory. Tried: 2 GiB", "KeyError: 'w1'",
     "AssertionError"],
)  # fmt: skip
def test_the_first_cause_is_read_from_vllms_log(cause: str) -> None:
    assert last_error(LOG.format(cause=cause)) == cause
    assert last_error("all is well: no ValueError here\n") is None
    assert last_error(LOG.split("(Worker_TP1")[0]) is None


def test_an_error_that_only_follows_is_replaced_by_its_cause(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "worker.err"
    log.write_text(LOG.format(cause="KeyError: 'w1'"))
    monkeypatch.setattr("gptoss_rl.sync.last_error.own_logs", lambda: [log])
    follows = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert described(RuntimeError(follows)) == "KeyError: 'w1'"
    assert described(ValueError("max_model_len is too large")) == "ValueError: max_model_len is too large"
    # What was killed did not end by what stands in the log.
    assert described(RuntimeError(follows.replace("{}", "{'EngineCore_DP0': -9}"))) == (
        "its process EngineCore_DP0 was killed by signal 9"
    )
    log.write_text("nothing\n")
    assert described(RuntimeError(follows)).startswith("one of its processes was killed or crashed, without a word in the log")
