"""The parts of a run, watched while one of them is waited for: one that dies ends the run at once, with its own last error.

Ray tells of a dead actor only to who has called it. While the policy loads for minutes nobody calls an engine, so a call that
only its death ends is kept open to every part.
"""

import os
import re
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from gptoss_rl.errors import GateError
from gptoss_rl.run.leftovers import MARK, note_shared_memory
from gptoss_rl.sync.last_error import ANSI, FirstCauseError, last_error

PROBE_SECONDS = 1.0  # between a part's answer and the next question
NOTE_SECONDS = 5.0  # between two looks at what the parts have of /dev/shm, which a part that is killed does not give back
GRACE_SECONDS = 2.0  # after a failure: whether a part has died, of which that is the consequence
PID = re.compile(r"^\s*pid: (\d+)$|\bpid=(\d+)", re.MULTILINE)
EXIT = re.compile(r"Worker exit type: (\w+)")


class Parts:
    """Engines and actors of one run, by name."""

    def __init__(self) -> None:
        self._questions: dict[ray.ObjectRef, tuple[str, Any]] = {}  # open calls
        self._answered: list[tuple[str, Any]] = []

    def watch(self, kind: str, handles: Sequence[Any] | None) -> None:
        """Add actors under `kind` and their number. One with a method `outlive`, which never returns, is asked that."""
        for number, handle in enumerate(handles or ()):
            self._ask(f"{kind} {number}", handle)

    def _ask(self, name: str, handle: Any) -> None:
        method = getattr(handle, "outlive", None) or handle.__ray_ready__
        self._questions[method.remote()] = (name, handle)

    def get(self, refs: Any, doing: str) -> Any:
        """As `ray.get`, of a reference or a list of them.

        Args:
            doing: what is waited for, as it completes "... while".

        Raises:
            GateError: a part died, or the call itself failed; of both, the part that died.
        """
        waiting = list(refs) if isinstance(refs, list) else [refs]
        asked = noted = time.monotonic()
        while waiting:
            ready, _ = ray.wait([*waiting, *self._questions], timeout=PROBE_SECONDS)
            for ref in ready:
                try:
                    ray.get(ref)
                except RayError as error:
                    note_shared_memory(os.environ.get(MARK))
                    raise self._cause(ref, error, doing) from None
                if ref in self._questions:
                    self._answered.append(self._questions.pop(ref))
                else:
                    waiting.remove(ref)
            if time.monotonic() - asked >= PROBE_SECONDS:
                asked = time.monotonic()
                for name, handle in self._answered:
                    self._ask(name, handle)
                self._answered = []
            if asked - noted >= NOTE_SECONDS:
                noted = asked
                note_shared_memory(os.environ.get(MARK))
        note_shared_memory(os.environ.get(MARK))
        return ray.get(refs)

    def _cause(self, ref: ray.ObjectRef, error: RayError, doing: str) -> BaseException:
        """Of everything that fails now, what did so first and by itself."""
        if ref in self._questions:
            return part_error(self._questions[ref][0], error, doing)
        if isinstance(error, RayTaskError) and isinstance(error.cause, GateError):
            return error.cause
        for name, handle in self._answered:
            self._ask(name, handle)
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := deadline - time.monotonic()) > 0 and self._questions:
            ready, _ = ray.wait(list(self._questions), timeout=left)
            for question in ready:
                name, _handle = self._questions[question]
                try:
                    ray.get(question)
                except RayError as death:
                    return part_error(name, death, doing)
                del self._questions[question]
        return error.as_instanceof_cause() if isinstance(error, RayTaskError) else error


def watch_run(engines: Sequence[Any] | None, policy: Any, controller: Any) -> Parts:
    """The parts of a run by the names that messages give them.

    Args:
        policy: OpenRLHF's `RayActorGroup` of the trainer's ranks.
        controller: the actor of OpenRLHF's `PPOTrainer`.
    """
    parts = Parts()
    parts.watch("engine", engines)
    parts.watch("trainer rank", policy._actor_handlers)
    parts.watch("controller", [controller])
    return parts


def part_error(name: str, error: RayError, doing: str) -> GateError:
    """One sentence: which part, during what, and the error it ended with itself."""
    text = ANSI.sub("", str(error))
    pids = [number for match in PID.findall(text) for number in match if number]
    where = f" Its lines in train.log begin with (... pid={pids[0]})." if pids else ""
    if isinstance(error, RayTaskError):
        said = str(error.cause) if error.cause is not None else last_error(text) or text
    elif isinstance(error, RayActorError) and (own := last_error(text) or last_error(text, secondary=True)):
        said = own.split(f"{FirstCauseError.__name__}: ", 1)[-1]
    else:
        exit_type = EXIT.search(text)
        process = f"its process {pids[0]}" if pids else "its process"
        said = (
            f"{process} was killed or crashed (Ray: {exit_type[1] if exit_type else text[:200]}): "
            "the kernel ends one for memory (dmesg says so), somebody ended it, or it crashed in native code"
        )
    return GateError("parts", f"{name} died while {doing}: {said}.{where}")
