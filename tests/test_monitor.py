"""The monitor sees what a run is doing, from its files alone, and raises its voice when something is wrong."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_run import make_run, metrics_line
from rich.console import Console

from gptoss_rl.alerts import RULES, alerts
from gptoss_rl.metrics import METRICS
from gptoss_rl.monitor import ROWS, newest_run, render, snapshot, sparkline
from gptoss_rl.run_view import RunView, Tail, process_record, process_start

ROOT = Path(__file__).resolve().parent.parent


def steps(count: int = 40, **changes) -> list[dict]:
    """`changes` are functions of the step."""
    return [metrics_line(i, float(i), **{k: f(i) for k, f in changes.items()}) for i in range(count)]


@pytest.mark.parametrize(
    ("rule", "changes", "message"),
    [
        ("not_a_number", {"loss/policy": lambda i: math.nan if i == 35 else 0.1}, "loss/policy"),
        ("reward_collapse", {"reward/mean": lambda i: 0.6 if i < 25 else 0.1}, "0.100 over the last 10 steps, 0.600"),
        ("entropy_collapse", {"policy/entropy": lambda i: 0.5 if i < 20 else 0.01}, "0.0100 nats"),
        ("mismatch", {"parity/kl": lambda i: 0.02}, "KL 0.0200"),
        ("truncation_rising", {"rollout/truncated": lambda i: 0.05 if i < 20 else 0.4}, "40% of responses"),
        ("nothing_to_learn", {"reward/all_wrong": lambda i: 0.95}, "nothing to learn"),
    ],
)
def test_every_rule_fires_on_what_it_is_for_and_alone(rule: str, changes: dict, message: str) -> None:
    found = alerts(steps(**changes), "running")
    assert len(found) == 1
    assert message in found[0]
    assert rule in {r.__name__ for r in RULES}


def test_every_rule_is_tested_and_a_healthy_run_is_quiet() -> None:
    assert len(RULES) == 6
    assert alerts(steps(), "running") == []
    assert alerts([], "starting") == []
    # The error of a mean over one token is infinite; that is no news.
    assert alerts(steps(**{"parity/kl_se": lambda i: math.inf}), "running") == []


def test_one_odd_step_raises_no_alarm() -> None:
    assert alerts(steps(**{"reward/mean": lambda i: 0.0 if i == 39 else 0.6}), "running") == []


@pytest.mark.parametrize(
    ("make", "process", "state"),
    [
        ({}, None, "finished"),
        ({"finished": False}, None, "running"),
        ({"finished": False, "age": 4000.0}, None, "stalled"),
        ({"finished": False}, "dead", "crashed"),
        ({"finished": False, "age": 60.0}, "alive", "running"),
        ({"finished": False, "age": 4000.0}, "alive", "stalled"),
    ],
)
def test_the_state_of_a_run_is_seen(tmp_path: Path, make: dict, process: str | None, state: str) -> None:
    folder = make_run(tmp_path / "run", 30, **make)
    if process:
        record = process_record()
        if process == "dead":
            record["start"] += 1  # the id was given to another process since
        (folder / "process.json").write_text(json.dumps(record))
    view = RunView(folder)
    assert view.state() == state
    data = snapshot(view)
    assert (data["state"], data["step"], data["total_steps"]) == (state, 30, 30)
    assert bool(data["alerts"]) == (state in ("stalled", "crashed"))


def test_a_resumed_run_is_read_anew(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 10, finished=False)
    view = RunView(folder)
    assert len(view.steps) == 10
    # Resuming replaces the file, without the steps after the checkpoint.
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "new").write_text("".join(lines[:6]))
    os.replace(folder / "new", folder / "metrics.jsonl")
    assert len(view.steps) == 6


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


def test_messages_of_gates_and_errors_are_shown_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 5, finished=False)
    line = "\x1b[36m(PPOTrainer pid=1)\x1b[0m gptoss_rl.errors.GateError: [gate parity] step 3: too far\n"
    (folder / "train.log").write_text("x\n" * 50 + line * 3)
    (message,) = RunView(folder).messages()
    assert "[gate parity] step 3: too far" in message


def test_the_view_has_everything_in_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 30)
    view = RunView(folder)
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115  (closed with the process)
    console.print(render(snapshot(view), view.steps))
    text = console.export_text()
    for word in ("finished", "step 30 of 30", "2.00 s a step", "generate 1.40 s", "75.0% (68.6% to 80.5%) on 200 problems",
                 "proven by 4 workers of 2 engines", "label 7", "right"):  # fmt: skip
        assert word in text, word
    assert all(label in text for _, label, _ in ROWS)


def test_every_row_is_a_registered_metric() -> None:
    assert {key for key, _, _ in ROWS} <= set(METRICS)


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


def monitor(*words) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "monitor.sh", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_prints_once_as_text_and_as_json(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 12)
    once = monitor(folder, "--once")
    assert once.returncode == 0, once.stderr
    assert "step 12 of 12" in once.stdout
    assert "\x1b" not in once.stdout  # a mail is no terminal
    data = json.loads(monitor(folder, "--json").stdout)
    assert data["evaluation"]["pass_at_1"] == 0.75
    missing = monitor(tmp_path / "nothing", "--once")
    assert missing.returncode == 1
    assert "is no run directory" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_the_newest_run_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        newest_run(tmp_path)
    for name in ("a", "b"):
        make_run(tmp_path / name, 2)
    os.utime(tmp_path / "a" / "command.txt", (time.time() + 9, time.time() + 9))
    assert newest_run(tmp_path).name == "a"
