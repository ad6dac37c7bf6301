"""What keeps Ray from starting is said at launch, with the variable to change."""

import argparse
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import ray

from gptoss_rl.errors import GateError
from gptoss_rl.sync.cluster import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    LEAST_SHM_BYTES,
    OBJECT_STORE_BYTES,
    SOCKET_BYTES,
    check_cluster,
    ray_options,
    ray_problems,
)
from gptoss_rl.sync.local_engine import engine_arguments

ROOT = Path(__file__).resolve().parent.parent
CPU = {"num_devices": 2}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)  # Python keeps the first answer


def problems(**changes) -> str:
    return "; ".join(ray_problems(engine_arguments(**changes)))


def test_this_machine_has_no_problem() -> None:
    assert problems(**CPU) == ""


@pytest.mark.parametrize("address", ["http://10.0.0.1:8265", "ray://10.0.0.1:10001", "10.0.0.1", "6379", "10.0.0.1:port"])
def test_what_is_no_address_of_a_head_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"RAY_ADDRESS={address} is no address of a cluster's head" in problems()
    assert "RAY_ADDRESS=HOST:PORT" in problems()


def test_an_address_where_nobody_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        assert "nobody answers there" in problems()
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    assert "RAY_ADDRESS=no-such-host.invalid:6379: nobody answers there" in problems()


def test_who_answers_and_is_not_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # a full queue of connections that nobody takes
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert "who answers there says nothing for 6 s, as no Ray does" in problems()
    web = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{web.server_port}")
    assert re.search(r"who answers there (is not Ray|says nothing)", problems())
    web.shutdown()
    assert CONNECT_SECONDS + ANSWER_SECONDS < 10


def test_the_address_of_a_cluster_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    ray.init(**{**ray_options(engine_arguments(num_devices=1)), "log_to_driver": False, "logging_level": "ERROR"})
    try:
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        assert problems() == ""
        assert "address" not in ray_options(engine_arguments())
    finally:
        ray.shutdown()


@pytest.mark.parametrize("address", ["", "local"])
def test_without_an_address_the_run_starts_its_own_ray(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert ray_options(engine_arguments(**CPU))["address"] == "local"
    assert problems(**CPU) == ""


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_with_too_long_a_path_is_named(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv(variable, str(long))
    found = problems(**CPU)
    assert f"{variable}={long}: Ray's sockets below it would have paths of up to" in found
    longest = int(re.search(r"to a folder of at most (\d+) bytes", found)[1])
    for length, message in ((longest, ""), (longest + 1, "AF_UNIX")):
        folder = Path("/tmp", "y" * (length - len("/tmp/")))  # never made
        monkeypatch.setenv(variable, str(folder))
        monkeypatch.setattr("tempfile.tempdir", None)
        assert message in problems(**CPU)
        assert bool(message) == bool(problems(**CPU))


def test_the_longest_folder_that_passes_is_one_in_which_ray_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The limit is computed from names that Ray builds; Ray itself says whether they are still built so.
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "y" * 200)
    longest = int(re.search(r"to a folder of at most (\d+) bytes", problems(**CPU))[1])
    link = Path(f"/tmp/{os.getpid()}-".ljust(longest, "y"))
    folder = tmp_path / "ray"
    folder.mkdir()
    link.symlink_to(folder)
    code = (
        "import ray\nfrom gptoss_rl.sync.cluster import ray_options\nfrom gptoss_rl.sync.local_engine import engine_arguments\n"
        "ray.init(**ray_options(engine_arguments(num_devices=1)))\n"
        "print('sockets', ray._private.worker._global_node.plasma_store_socket_name)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "RAY_TMPDIR": str(link)}, cwd=ROOT, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip
    finally:
        link.unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    path = re.search(r"sockets (\S+)", done.stdout)[1]
    pid_digits = len(re.search(r"_(\d+)/sockets", path)[1])
    possible = len(Path("/proc/sys/kernel/pid_max").read_text().strip())
    assert len(path) + possible - pid_digits == SOCKET_BYTES


def test_a_temporary_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "not" / "there"))
    asked = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append(Path(path)))  # root may write everywhere
    assert f"RAY_TMPDIR={tmp_path}/not/there: Ray keeps its session there" in problems(**CPU)
    assert asked == [tmp_path]  # the nearest folder that is there


@pytest.mark.parametrize(("changes", "needed"), [(CPU, OBJECT_STORE_BYTES), ({}, LEAST_SHM_BYTES)])
def test_too_little_shared_memory_is_named(changes: dict, needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(64 << 20, 0, 64 << 20))
    assert "/dev/shm has 0.07 GB free" in problems(**changes)
    assert "--shm-size 16g" in problems(**changes)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2 * needed, 0, 2 * needed))
    assert problems(**changes) == ""


@pytest.mark.parametrize("resources", [{}, {"GPU": 4.0}])
def test_a_cluster_that_can_never_place_the_run_is_refused(resources: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray would wait for the missing device for ever.
    flags = argparse.Namespace(
        actor_num_nodes=1, actor_num_gpus_per_node=1, vllm_num_engines=2, vllm_tensor_parallel_size=2, num_devices=None
    )
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    with pytest.raises(GateError, match=f"cluster.*needs 5 devices .*Ray has {resources.get('GPU', 0):g}.*--num_devices 5"):
        check_cluster(flags)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 5.0})
    check_cluster(flags)


def test_a_launch_ends_within_seconds_with_the_sentence(tmp_path: Path) -> None:
    # Through the launcher; the variable is the only thing that is wrong.
    environment = {**os.environ, "RAY_ADDRESS": "http://127.0.0.1:8265", "PREFLIGHT": "0"}
    flags = ["--run_dir", str(tmp_path / "run")]
    done = subprocess.run(["bash", "train_grpo_20b_a30.sh", *flags], cwd=ROOT, env=environment, capture_output=True, text=True,
                          check=False, timeout=120)  # fmt: skip
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("refused: [gate cluster] RAY_ADDRESS=http://127.0.0.1:8265 is no address")
    )
    assert not (tmp_path / "run").exists()
    assert not ray.is_initialized()
