"""Shared by all tests: the environment of a CPU run, and a small gpt-oss with everything the real one has."""

import os
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then those that start engines, then whole runs."""

    def weight(item: pytest.Item) -> int:
        return 2 if item.get_closest_marker("e2e") else 1 if item.get_closest_marker("engine") else 0

    items.sort(key=weight)


@pytest.fixture(scope="session")
def gpt_oss_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random gpt-oss of two layers."""
    from gptoss_rl.random_model import save_random_gpt_oss

    folder = tmp_path_factory.mktemp("gpt-oss")
    save_random_gpt_oss(folder)
    return folder
