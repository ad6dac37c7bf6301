"""Shared by all tests: the environment of a CPU run, a small gpt-oss with everything the real one has, and one whole run."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

# Before torch, Ray or vLLM are imported anywhere.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent

# A shell's background job starts with Ctrl-C ignored, and so would every command that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run files, and the tests in them, in this random order")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first, then those that start engines, then whole runs, the longest first; told how xdist may deal them out.

    A file's tests share fixtures, so they stay in one process. A whole run shares little and is a group of its own, unless
    its marker says otherwise: what is left over at the end is then one run at most.
    """

    def weight(item: pytest.Item) -> tuple[int, float]:
        run = item.get_closest_marker("e2e")
        if run:
            return 2, -run.kwargs["seconds"]
        return (1 if item.get_closest_marker("engine") else 0), 0.0

    seed = config.getoption("--shuffle")
    if seed is None:
        items.sort(key=weight)
    else:
        rng = random.Random(seed)
        rng.shuffle(items)  # order within a file, and then of the files
        files = list(dict.fromkeys(item.path for item in items))
        rng.shuffle(files)
        items.sort(key=lambda item: files.index(item.path))
    for item in items:
        run = item.get_closest_marker("e2e")
        group = (run.kwargs.get("group") or item.name) if run else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`once(name, make)` is a folder that `make` has filled, in whichever process of xdist came first."""
    from filelock import FileLock

    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent  # of all processes of this session

    def make_once(name: str, make: Callable[[Path], None]) -> Path:
        folder, made = shared / f"once-{name}", shared / f"once-{name}.made"
        with FileLock(shared / f"once-{name}.lock"):
            if not made.exists():
                folder.mkdir()  # fails where another process failed to make it: its error is the one to read
                make(folder)
                made.touch()
        return folder

    return make_once


@pytest.fixture(scope="session")
def gpt_oss_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random gpt-oss of two layers."""
    from gptoss_rl.models.random_model import save_random_gpt_oss

    folder = tmp_path_factory.mktemp("gpt-oss")
    save_random_gpt_oss(folder)
    return folder


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The tiny model; its problems are in data/."""
    from tiny_run import make_tiny

    return make_tiny()


@pytest.fixture(scope="session")
def eval_file(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first forty held-out problems: the tests look at the machinery, not at the score."""
    path = tmp_path_factory.mktemp("data") / "eval.jsonl"
    path.write_text("".join((ROOT / "data" / "tiny_eval.jsonl").read_text().splitlines(keepends=True)[:40]))
    return path


@pytest.fixture(scope="session")
def readme_data(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The data folder that the README's data commands make of made-up sources. Nobody writes into it."""
    from readme import make_data

    return once("readme-data", make_data) / "gptoss-rl" / "data"


@pytest.fixture(scope="session")
def finished_run(eval_file: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A run of four steps with both trackers on; what it printed is in printed.txt. Nobody writes into it."""
    from tiny_run import run

    def make(folder: Path) -> None:
        run_dir = folder / "run"
        trackers = ["--use_tensorboard", str(run_dir / "tensorboard"), "--use_wandb", "True", "--wandb_run_name", "x"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_MODE", "offline")
            done = run(run_dir, eval_file, 4, "--save_steps", "4", *trackers)
        assert done.returncode == 0, done.output[-6000:]
        (run_dir / "printed.txt").write_text(done.output)

    return once("finished-run", make) / "run"
