"""The errors a run stops with. Each message says what was expected, what was seen, and what to do."""

from typing import Any


class GateError(RuntimeError):
    """A gate found a state in which training would be worthless; the run stops."""

    def __init__(self, gate: str, message: str):
        super().__init__(f"[gate {gate}] {message}")
        self.gate = gate

    def __reduce__(self):
        # BaseException pickles args, which hold the formatted text: without this Ray would prefix it twice.
        return _rebuild, (type(self), self.args[0]), vars(self)


class SyncError(GateError):
    """A LoRA sync is not proven: some worker does not hold what the trainer sent."""

    def __init__(self, message: str, **record: Any):
        super().__init__("sync", message)
        self.record = record  # of the sync, for sync.jsonl


class RewardError(GateError):
    """The reward of a sample is missing, not finite, late, or its function raised."""

    def __init__(self, message: str):
        super().__init__("reward", message)


def _rebuild(cls: type[GateError], text: str) -> GateError:
    error = cls.__new__(cls)
    RuntimeError.__init__(error, text)
    return error
