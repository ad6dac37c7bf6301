"""What vLLM 0.20.2 must be spared in every process it starts; vLLM calls `register` there (entry point, pyproject.toml).

Its workers mend themselves when they import their extension (vllm_worker.py); this is for the process above them.
"""

from functools import wraps
from typing import Any


def register() -> None:
    """Let VLLM_CPU_OMP_THREADS_BIND=nobind start: vLLM prints a list of bindings that it then does not have."""
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    parse = OMPProcessManager._parse_omp_threads_bind_env
    if not hasattr(parse, "gptoss_rl"):
        OMPProcessManager._parse_omp_threads_bind_env = _without_bindings(parse)


def _without_bindings(parse: Any) -> Any:
    @wraps(parse)
    def wrapper(self: Any) -> None:
        from vllm import envs

        if envs.VLLM_CPU_OMP_THREADS_BIND != "nobind":
            parse(self)
            return
        # As vllm/utils/ompmultiprocessing.py:124-163 leaves them; its last lines index the empty list.
        self.skip_setup, self.auto_setup = True, False
        self.reserved_cpu_list, self.cpu_lists = [], []

    wrapper.gptoss_rl = True
    return wrapper
