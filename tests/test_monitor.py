"""The monitor sees what a run is doing, from its files alone, and raises its voice when something is wrong."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_run import FAILED_SYNC, eval_line, make_run, metrics_line, write_lines
from rich.console import Console

from gptoss_rl.metrics import METRICS
from gptoss_rl.run_files import process_record, process_start
from gptoss_rl.watch import load
from gptoss_rl.watch.monitor import newest_run
from gptoss_rl.watch.run_view import RunView, Tail
from gptoss_rl.watch.screen import ERRORS, facts, phase_bar, render, sparkline
from gptoss_rl.watch.snapshot import ROWS, snapshot

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("make", "process", "state"),
    [
        ({}, None, "finished"),
        ({"finished": False}, None, "running"),
        ({"finished": False, "age": 4000.0}, None, "stalled"),
        ({"finished": False}, "dead", "crashed"),
        ({"finished": False, "age": 60.0}, "alive", "running"),
        ({"finished": False}, "stopped", "stopped"),
        ({"finished": False, "age": 4000.0}, "alive", "stalled"),
    ],
)
def test_the_state_of_a_run_is_seen(tmp_path: Path, make: dict, process: str | None, state: str) -> None:
    folder = make_run(tmp_path / "run", 30, **make)
    if process:
        record = process_record()
        if process == "dead":
            record["start"] += 1  # the id was given to another process since
        if process == "stopped":  # the launcher is still there while it writes the report
            (folder / "exit.json").write_text('{"status": 1}')
        (folder / "process.json").write_text(json.dumps(record))
    view = RunView(folder)
    assert view.state() == state
    data = snapshot(view)
    assert (data["state"], data["step"], data["total_steps"]) == (state, 30, 30)
    assert bool(data["alerts"]) == (state in ("stalled", "stopped", "crashed"))


def test_a_resumed_run_is_read_anew(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 10, finished=False)
    view = RunView(folder)
    assert len(view.steps) == 10
    # Resuming replaces the file, without the steps after the checkpoint.
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "new").write_text("".join(lines[:6]))
    os.replace(folder / "new", folder / "metrics.jsonl")
    assert len(view.steps) == 6
    assert snapshot(view)["messages"] == []
    (folder / "command.resume1.txt").write_text("again")
    assert snapshot(view)["messages"][0].startswith("resumed at 20")


def test_a_run_that_was_resumed_a_moment_ago_is_not_stalled(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 10, finished=False, age=4000.0)
    (folder / "process.json").write_text(json.dumps(process_record()))
    assert RunView(folder).state() == "stalled"
    (folder / "command.resume1.txt").write_text("again")
    assert RunView(folder).state() == "running"


@pytest.mark.parametrize(("age", "state"), [(600.0, "starting"), (4000.0, "stalled")])
def test_loading_a_large_model_is_no_stall(tmp_path: Path, age: float, state: str) -> None:
    command = tmp_path / "command.txt"
    command.write_text("python -m openrlhf.cli.train_ppo_ray\n")
    os.utime(command, (time.time() - age, time.time() - age))
    assert RunView(tmp_path).state() == state


def test_a_line_is_read_once_it_is_whole_and_a_torn_one_never(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    tail = Tail(path)
    assert tail.refresh() == []
    path.write_text('{"a": 1}\n{"a": ')
    assert tail.refresh() == [{"a": 1}]
    with path.open("a") as file:
        file.write("2}\n")
    assert tail.refresh() == [{"a": 1}, {"a": 2}]
    with path.open("a") as file:
        file.write('{"a": to\n{"a": 3}\n')
    assert tail.refresh() == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert tail.strange == 0


def test_a_line_that_is_no_step_is_passed_over_and_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('null\n{"step": 6}\n{"step": 7, "time": null}\n[1]\n')
    (folder / "sync.jsonl").write_text('{"step": 5}\n')
    data = snapshot(RunView(folder))
    assert data["step"] == 5
    assert data["sync"] is None
    assert data["messages"] == [
        "metrics.jsonl: 4 lines passed over: no record of a run",
        "sync.jsonl: 1 line passed over: no record of a run",
    ]


def test_messages_of_gates_and_errors_are_shown_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 5, finished=False)
    line = "\x1b[36m(PPOTrainer pid=1)\x1b[0m gptoss_rl.errors.GateError: [gate parity] step 3: too far\n"
    (folder / "train.log").write_text("x\n" * 50 + line * 3)
    (message,) = RunView(folder).messages()
    assert "[gate parity] step 3: too far" in message


def drawn(view: RunView, width: int, height: int | None = None) -> list[str]:
    console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: SIM115  (closed with the process)
    console.print(render(snapshot(view), view.steps, width, height))
    return console.export_text().splitlines()


def test_the_view_has_everything_in_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 30)
    (folder / "canary.json").write_text('{"parity/abs_diff_mean": 0.00127, "correlation": 0.99993}')
    text = "\n".join(drawn(RunView(folder), 120))
    assert "0.400 ± 0.980" in text  # the last reward with its 95 %
    assert "0.318     0.385" in text  # its first and its last ten steps
    for word in ("finished", "step 30 of 30", "2.00 s a step", "generate 1.40 s", "label 7", "right", "│ What is 7 + 0",
                 "75.0% (68.6% to 80.5%) at step 30, 33.5% at first; n 200 (stability)",
                 "parity 0.0013 nats, correlation 1.000", "1 proven, last version 33 by 4 workers",
                 "of 2 engines, 96 modules, adapter"):  # fmt: skip
        assert word in text, word
    assert all(label in text for _, label, _ in ROWS)


def test_a_failed_sync_is_said_and_does_not_count_as_proven(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 5, finished=False)
    with (folder / "sync.jsonl").open("a") as file:
        file.write(json.dumps(FAILED_SYNC) + "\n")
    data = snapshot(RunView(folder))
    assert data["sync"]["proven"] == 1
    (alert,) = data["alerts"]
    assert "sync of policy version 9 (4 workers of 2 engines answered) at step 5 failed: [gate sync] engine 1" in alert
    assert "at step 5 failed" in " ".join(drawn(RunView(folder), 120))
    # One that failed before anything was answered.
    write_lines(folder / "sync.jsonl", [{**FAILED_SYNC, "policy_version": None, "error": "lora_B holds NaN"}])
    data = snapshot(RunView(folder))
    assert (data["sync"], data["alerts"]) == (None, ["sync at step 5 failed: lora_B holds NaN"])
    # A run that was resumed and has proven its next sync is well.
    write_lines(folder / "sync.jsonl", [FAILED_SYNC, {k: v for k, v in FAILED_SYNC.items() if k != "error"}])
    assert snapshot(RunView(folder))["alerts"] == []


def test_one_of_a_thing_is_singular_and_what_is_off_has_no_row(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 3)
    sync = {"policy_version": 3, "engines": 1, "workers": 1, "modules": 16, "mode": "adapter"}
    write_lines(folder / "sync.jsonl", [sync])
    text = "\n".join(drawn(RunView(folder), 120))
    assert "by 1 worker of 1 engine, 16 modules" in text
    assert "KL to base" in text
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "init_kl_coef": 0.0}))
    assert "KL to base" not in "\n".join(drawn(RunView(folder), 120))


@pytest.mark.parametrize("width", [44, 60, 80, 100, 160])
def test_numbers_are_whole_and_the_latest_steps_in_sight_on_a_narrow_terminal(tmp_path: Path, width: int) -> None:
    """A column that has no room is left out: a number that is cut reads as another one."""
    folder = make_run(tmp_path / "run", 300)
    write_lines(
        folder / "metrics.jsonl",
        [metrics_line(i, 2.0 * i, **{"parity/kl": 3.12e-5 + 1e-9 * i, "parity/kl_se": 1e-5}) for i in range(300)],
    )
    lines = drawn(RunView(folder), width)
    (row,) = (line for line in lines if line.startswith(" KL to sampler "))
    assert "3.15e-05 ± 1.96e-05" in row
    if width >= 60:
        assert row.rstrip().endswith("█")  # it rises to the end
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 24), (40, 24)])
def test_a_short_terminal_shows_what_went_wrong_and_drops_what_says_least(
    tmp_path: Path, monkeypatch, width: int, height: int
) -> None:
    make_run(tmp_path / "run", 30, finished=False)
    (tmp_path / "run" / "exit.json").write_text('{"status": 1}')
    (tmp_path / "run" / "train.log").write_text(f"GateError: [gate parity] step 3: {'too_far ' * 20}\n")
    monkeypatch.chdir(tmp_path)
    lines = drawn(RunView(Path("run")), width, height)
    assert len(lines) <= height
    assert any(line.startswith("! stopped") for line in lines[2:4])
    assert sum(line.count("too_far") for line in lines) == 20
    reward = next(i for i, line in enumerate(lines) if line.startswith(" reward "))
    assert all(i < reward for i, line in enumerate(lines) if "too_far" in line)
    assert not any(line.startswith(" clipped low ") for line in lines)  # never moved
    assert any("rows not shown: no room" in line for line in lines)


def test_a_long_response_leaves_its_end_on_a_short_terminal(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 30)
    write_lines(folder / "samples.jsonl", [{**eval_line(30, 7, True), "response": "so " * 5000 + "\\boxed{7}"}])
    lines = drawn(RunView(folder), 80, 24)
    assert len(lines) <= 24
    assert lines[-2].rstrip(" │").endswith("so \\boxed{7}")


@pytest.mark.parametrize(("width", "bar"), [(60, 0), (85, 14), (110, 39), (200, 50)])
def test_the_bar_of_phases_takes_the_room_there_is(width: int, bar: int) -> None:
    text = phase_bar({"generate": 0.33, "experience": 0.33, "train": 0.33, "sync": 0.01}, width).plain
    assert text.count("█") == bar
    assert bar == 0 or len(text) <= width


def test_every_row_is_a_registered_metric() -> None:
    assert {key for key, _, _ in ROWS} | set(ERRORS.values()) <= set(METRICS)


def test_several_samples_of_a_problem_are_its_share(tmp_path: Path) -> None:
    """Two problems, two samples each: 1 and 1/2."""
    folder = make_run(tmp_path / "run", 3)
    write_lines(
        folder / "eval.jsonl", [eval_line(0, 1, True), eval_line(0, 1, True), eval_line(0, 2, True), eval_line(0, 2, False)]
    )
    assert snapshot(RunView(folder))["evaluation"]["pass_at_1"] == 0.75
    assert snapshot(RunView(folder))["evaluation"]["n"] == 2


def test_sparklines() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert len(sparkline([float(i) for i in range(1000)])) == 40
    assert sparkline([math.nan, 1.0, math.inf, 2.0]) == "▁█"


def test_a_process_that_is_gone_has_no_start() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid) is not None
    child.communicate(b"\n")
    assert process_start(child.pid) is None


def monitor(*words, path: str = "", timeout: float = 60.0) -> subprocess.CompletedProcess:
    env = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    command = ["bash", "monitor.sh", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=timeout)


def fake_nvidia_smi(folder: Path, script: str) -> str:
    """A folder for PATH."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo '93, 1024, 24576'", "  93% 1/24 GiB"),
        ("echo '[N/A], 1024, 24576'", "  load unknown 1/24 GiB"),  # a MIG slice
        ("echo '5, [N/A], [Not Supported]'", "  5% ?/? GiB"),  # shared memory
        ("echo 'Failed to initialize NVML'; exit 9", "  GPU load unknown"),
        ("exec sleep 30", "  GPU load unknown"),  # a driver that hangs
    ],
)
def test_a_gpu_that_does_not_tell_is_called_unknown(tmp_path: Path, monkeypatch, script: str, words: str) -> None:
    monkeypatch.setenv("PATH", fake_nvidia_smi(tmp_path / "bin", script) + ":" + os.environ["PATH"])
    monkeypatch.setattr(load, "ANSWER_SECONDS", 0.5)
    data = snapshot(RunView(make_run(tmp_path / "run", 3)), load.GpuWatch().latest(patience=5.0))
    assert words in facts(data)[-1].plain


def test_a_hanging_nvidia_smi_holds_up_no_refresh(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", fake_nvidia_smi(tmp_path / "bin", "exec sleep 30") + ":" + os.environ["PATH"])
    start = time.monotonic()
    gpus = load.GpuWatch()
    assert [gpus.latest() for _ in range(3)] == [None] * 3
    assert time.monotonic() - start < 1.0


def test_the_command_survives_a_hanging_nvidia_smi(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 12)
    done = monitor(folder, "--once", path=fake_nvidia_smi(tmp_path / "bin", "exec sleep 60"), timeout=30.0)
    assert done.returncode == 0, done.stderr
    assert "GPU load unknown" in done.stdout


def test_the_command_prints_once_as_text_and_as_json(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 12)
    once = monitor(folder)  # as with --once: nobody looks at a pipe twice
    assert once.returncode == 0, once.stderr
    assert "step 12 of 12" in once.stdout
    assert "\x1b" not in once.stdout  # a mail is no terminal
    data = json.loads(monitor(folder, "--json").stdout)
    assert data["evaluation"]["pass_at_1"] == 0.75


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 12)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics_line(13, time.time(), **{"parity/kl": math.nan, "time/train": math.inf})) + "\n")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    data = json.loads(monitor(folder, "--json").stdout, parse_constant=refuse)
    assert data["metrics"]["parity/kl"] is None
    assert data["phases"]["train"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing",), "no run directory"),
        (("tests", "--once"), "no command.txt is in it"),
        (("--interval", "-1"), "seconds above 0"),
    ],
)
def test_what_cannot_be_watched_is_refused_in_a_sentence(words: tuple[str, ...], message: str) -> None:
    done = monitor(*words)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_newest_run_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        newest_run(tmp_path)
    for name in ("a", "b"):
        make_run(tmp_path / name, 2)
    os.utime(tmp_path / "a" / "command.txt", (time.time() + 9, time.time() + 9))
    assert newest_run(tmp_path).name == "a"
