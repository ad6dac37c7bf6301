"""A driver that could not say how it ended is spoken for; one that could is not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_rl.run.ending import LOST_HEAD

ROOT = Path(__file__).resolve().parent.parent


def ended(folder: Path, status: int, before: bytes, printed: bytes) -> bytes:
    """What train.log holds after the launcher has told of a driver that printed `printed`, if anything in another life."""
    (folder / "train.log").write_bytes(before + printed)
    command = [sys.executable, "-m", "gptoss_rl.run.ending", folder, str(status), str(len(before))]
    subprocess.run(command, cwd=ROOT, check=True)
    assert json.loads((folder / "exit.json").read_text()) == {"status": status}
    return (folder / "train.log").read_bytes().removeprefix(before + printed)


@pytest.mark.parametrize(
    ("status", "printed", "sentence"),
    [
        (137, b"", b"[gate parts] the driver was ended by SIGKILL"),
        (139, b"loading", b"[gate parts] the driver was ended by SIGSEGV"),
        (200, b"", b"[gate parts] the driver was ended by signal 72"),
        (127, f"... {LOST_HEAD}. It's either ...\n".encode(), b"[gate parts] Ray's head process (gcs_server) died"),
    ],
)
def test_a_driver_that_could_not_say_it_is_spoken_for(tmp_path: Path, status: int, printed: bytes, sentence: bytes) -> None:
    assert ended(tmp_path, status, b"of a life before\n", printed).strip().startswith(sentence)


@pytest.mark.parametrize(("status", "printed"), [(0, b"done\n"), (1, b"[gate sync] ...\n"), (130, b"interrupted at step 3\n")])
def test_a_driver_that_said_it_is_left_alone(tmp_path: Path, status: int, printed: bytes) -> None:
    assert ended(tmp_path, status, f"{LOST_HEAD}\n".encode(), printed) == b""
