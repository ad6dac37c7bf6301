"""The errors a run stops with. Each message says what was expected, what was seen, and what to do."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gate:
    when: str
    stops_when: str


# Every gate, in the order of a run; the README's table is made from it (gptoss_rl/documents.py).
GATES: dict[str, Gate] = {
    "stack": Gate(
        "launch",
        "the installed OpenRLHF is not, byte for byte, the released one with the patches of `patches/series`",
    ),
    "flags": Gate(
        "launch",
        "a flag or a combination is known to train wrongly, to do nothing or to be unable to run (attention kernel, batch "
        "sizes that do not divide, LoRA targets that the engines do not serve, ...)",
    ),
    "cluster": Gate(
        "launch",
        "Ray cannot start here (a socket path that is too long, a small `/dev/shm`), nobody or no Ray answers at "
        "`RAY_ADDRESS`, or it has too few devices",
    ),
    "labels": Gate(
        "launch",
        "a label is not an integer; a prompt is empty, duplicated or cannot be rendered; a training problem is in the "
        "evaluation set; or there is less than one batch of data",
    ),
    "checkpoint": Gate(
        "on `--load_checkpoint`",
        "flags, data, base or LoRA are not the run's, or what DeepSpeed loaded is not bit for bit what was saved",
    ),
    "parity": Gate(
        "before step 1 and every step",
        "trainer and sampler give different logprobs to the same tokens, on the whole or late in a sequence",
    ),
    "canary": Gate(
        "before step 1",
        "known noise in the adapter does not move trainer and sampler alike, or undoing it does not bring them back",
    ),
    "sync": Gate(
        "every sync",
        "any worker of any engine does not prove that it serves exactly the adapter that was sent, or a sample comes from "
        "another policy version",
    ),
    "reward": Gate("every sample", "the reward function raises, hangs, or returns nothing or no finite number"),
    "mismatch": Gate(
        "every step",
        "KL of sampler and trainer stays above a limit for several steps; a checkpoint is written first",
    ),
    "parts": Gate(
        "as long as the run lives",
        "an engine, one of its processes, a trainer rank or the controller dies, whatever the run is waiting for; the "
        "message is that part's own error",
    ),
    "gradient": Gate(
        "before every optimizer step",
        "a trainable matrix has no gradient, or all are zero although samples have an advantage",
    ),
    "finite": Gate("before every backward, optimizer step and sync", "loss, gradient or adapter is not finite"),
}


class GateError(RuntimeError):
    """A gate found a state in which training would be worthless; the run stops."""

    def __init__(self, gate: str, message: str):
        assert gate in GATES, f"{gate} is no gate"
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
