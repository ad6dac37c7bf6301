"""Which folders a run may use: a start that took no step blocks nothing, and nothing that a run did is lost."""

import json
import os
import socket
from pathlib import Path

import pytest

from gptoss_rl.errors import GateError
from gptoss_rl.run.directory import FAILED_STARTS, check_unoccupied, set_failed_start_aside
from gptoss_rl.run.resume import check_resume
from gptoss_rl.run_files import process_start
from gptoss_rl.sync.local_engine import engine_arguments


def arguments(folder: Path, **changes):
    return engine_arguments(run_dir=str(folder), ckpt_path=str(folder / "checkpoints"), **changes)


def make_start(folder: Path, *, pid: int = 2**22 + 1, start: int | None = 1, host: str | None = None, steps: int = 0) -> Path:
    """What a launch leaves, by default of a launcher that is gone."""
    folder.mkdir(exist_ok=True)
    (folder / "command.txt").write_text("python -m x\n")
    (folder / "config.json").write_text("{}")
    process = {"host": host or socket.gethostname(), "pid": pid, "start": start}
    (folder / "process.json").write_text(json.dumps(process))
    (folder / "train.log").write_text("ImportError: the reason\n")
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {i + 1}}}\n' for i in range(steps)) + '{"st')
    return folder


def test_a_new_and_an_empty_folder_are_free(tmp_path: Path) -> None:
    check_unoccupied(arguments(tmp_path / "new"))
    check_unoccupied(arguments(tmp_path))
    assert set_failed_start_aside(tmp_path / "new") is None
    assert set_failed_start_aside(tmp_path) is None


def test_a_file_and_a_folder_of_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(GateError, match="is a file"):
        check_unoccupied(arguments(tmp_path / "notes.txt"))
    with pytest.raises(GateError, match="already holds a run or other files"):
        check_unoccupied(arguments(tmp_path))
    assert set_failed_start_aside(tmp_path) is None
    assert (tmp_path / "notes.txt").is_file()


def test_a_start_without_a_step_is_set_aside_and_the_folder_is_free_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number in (1, 2):
        make_start(folder)
        check_unoccupied(arguments(folder))
        aside = set_failed_start_aside(folder)
        assert aside == folder / FAILED_STARTS / str(number)
        assert {path.name for path in folder.iterdir()} == {FAILED_STARTS}
        assert (aside / "train.log").read_text() == "ImportError: the reason\n"
        check_unoccupied(arguments(folder))
        assert set_failed_start_aside(folder) is None  # only once


def test_a_start_without_a_step_cannot_be_resumed_and_says_what_to_do(tmp_path: Path) -> None:
    folder = make_start(tmp_path / "run")
    with pytest.raises(GateError, match="holds no checkpoint to resume from; it took no step, so start it without --load_ch"):
        check_resume(arguments(folder, load_checkpoint=True))


@pytest.mark.parametrize("host", [None, "another-host"])
def test_a_run_that_may_still_be_going_is_left_alone(host: str | None, tmp_path: Path) -> None:
    folder = make_start(tmp_path / "run", pid=os.getpid(), start=process_start(os.getpid()), host=host)
    with pytest.raises(GateError, match="may still be going on"):
        check_unoccupied(arguments(folder))
    assert set_failed_start_aside(folder) is None
    (folder / "exit.json").write_text('{"status": 1}')  # another host's launcher wrote that it has ended
    check_unoccupied(arguments(folder))


def test_a_run_with_steps_is_refused_and_only_one_with_a_checkpoint_can_be_resumed(tmp_path: Path) -> None:
    folder = make_start(tmp_path / "run", steps=3)
    with pytest.raises(GateError, match="already holds a run: 3 steps, and no checkpoint to resume from"):
        check_unoccupied(arguments(folder))
    latest = folder / "checkpoints" / "_actor" / "latest"
    latest.parent.mkdir(parents=True)
    latest.write_text("global_step2")
    with pytest.raises(GateError, match="already holds a run; .*pass --load_checkpoint to resume it"):
        check_unoccupied(arguments(folder))
    check_unoccupied(arguments(folder, load_checkpoint=True))
    assert set_failed_start_aside(folder) is None
