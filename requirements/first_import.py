"""Imports once what a run imports, and compiles DeepSpeed's CPU Adam for the CPU environment.

A machine on which this cannot work says so now and not in the middle of a run, from one of ten processes. It also
writes the byte code of these modules: without it each process of a run compiles them again, 45 s instead of 12. And
the CPU build of vLLM writes at its first import, for itself, the package entry by which it recognises the platform;
processes that start at the same time would race for that.

    .venv/bin/python -I requirements/first_import.py cpu
"""

import importlib
import os
import subprocess
import sys
import time

MODULES = ("torch", "transformers", "peft", "ray", "deepspeed", "vllm", "openrlhf.cli.train_ppo_ray", "gptoss_rl")
MODULES += ("vllm.v1.engine.core", "vllm.model_executor.models.gpt_oss")
WORKER = {"cpu": "vllm.v1.worker.cpu_worker", "gpu": "vllm.v1.worker.gpu_worker"}


def timed(what: str, start: float) -> None:
    print(f"  {time.perf_counter() - start:5.1f} s  {what}", flush=True)


def compile_cpu_adam() -> None:
    """Torch keeps the result in its extensions folder, for each Python and torch version."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    from gptoss_rl.run.leftovers import remove_stale_locks

    remove_stale_locks()
    CPUAdamBuilder().load(verbose=False)


def main(mode: str, only_compile: bool) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if mode == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    compiler = None
    if mode == "cpu" and not only_compile:  # on the other core; most of it is one call of g++
        compiler = subprocess.Popen([sys.executable, "-I", "-W", "ignore", __file__, mode, "--only_compile"])
    try:
        for name in () if only_compile else (*MODULES, WORKER[mode]):
            start = time.perf_counter()
            module = importlib.import_module(name)
            timed(f"{name} {getattr(module, '__version__', '')}".rstrip(), start)
        if only_compile:
            start = time.perf_counter()
            compile_cpu_adam()
            timed("compiling DeepSpeed's CPU Adam", start)
        if compiler is not None and compiler.wait() != 0:
            sys.exit(f"DeepSpeed's CPU Adam could not be compiled (exit status {compiler.returncode}, its message is above)")
    finally:
        if compiler is not None and compiler.poll() is None:  # an import failed
            compiler.terminate()


if __name__ == "__main__":
    main(sys.argv[1], "--only_compile" in sys.argv)
