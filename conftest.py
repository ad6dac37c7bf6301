"""Shared by all tests: the environment of a CPU run, a small gpt-oss with everything the real one has, and one whole run."""

import os
import signal
from pathlib import Path

# Before torch, Ray or vLLM are imported anywhere.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent

# A shell's background job starts with Ctrl-C ignored, and so would every command that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then those that start engines, then whole runs."""

    def weight(item: pytest.Item) -> int:
        return 2 if item.get_closest_marker("e2e") else 1 if item.get_closest_marker("engine") else 0

    items.sort(key=weight)


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
def finished_run(eval_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with both trackers on; what it printed is in printed.txt."""
    from tiny_run import run

    run_dir = tmp_path_factory.mktemp("runs") / "run"
    trackers = ["--use_tensorboard", str(run_dir / "tensorboard"), "--use_wandb", "True", "--wandb_run_name", "x"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        done = run(run_dir, eval_file, 4, "--save_steps", "4", *trackers)
    assert done.returncode == 0, done.output[-6000:]
    (run_dir / "printed.txt").write_text(done.output)
    return run_dir
