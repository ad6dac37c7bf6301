"""The error that ended a process, found in what it or Ray wrote: the first cause, not what followed from it."""

import re
from pathlib import Path

MESSAGE_LENGTH = 400
LOG_TAIL = 256 * 1024  # bytes from the end of a log in which the error is looked for
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# A traceback's last line. vLLM's logger and its processes write their name, pid, level, time and file before each line.
ERROR_LINE = re.compile(
    r"^(?:\([^)]*pid=\d+\)\s?)?(?:ERROR \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?)?"
    r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt)\b(?:: .*)?)$",
    re.MULTILINE,
)
# What vLLM raises because another of its processes has failed (v1/engine/utils.py, v1/executor/multiproc_executor.py,
# v1/engine/exceptions.py), and Ray because an actor is gone: not why.
SECONDARY = re.compile(
    r"root cause|Engine core initialization failed|Executor failed|cancelled|CancelledError|EngineDeadError|"
    r"ActorDiedError|RayActorError|RayTaskError|SystemExit|Broken ?pipe|Connection reset|^EOFError"
)
KILLED = re.compile(r"'(\w+)': -(\d+)")  # of vLLM's "Failed core proc(s): {'EngineCore_DP0': -9}"


class FirstCauseError(RuntimeError):
    """The error that ended an engine, in place of the one that followed from it."""


def last_error(text: str, *, secondary: bool = False) -> str | None:
    """The last error in a text, or with `secondary` the last that is the consequence of another; None when there is none."""
    found = [match[1].strip() for match in ERROR_LINE.finditer(ANSI.sub("", text))]
    wanted = [line for line in found if bool(SECONDARY.search(line)) == secondary]
    return wanted[-1] if wanted else None


def own_logs() -> list[Path]:
    """Files that this process and its children write to, when its output goes to files, as Ray's workers' does."""
    paths = [Path(f"/proc/self/fd/{number}").readlink() for number in (1, 2)]
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def error_in_own_logs() -> str | None:
    """The first cause in what this process's children wrote; stderr counts first, where Python puts its tracebacks."""
    for path in reversed(own_logs()):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL))
            error = last_error(file.read().decode("utf-8", "replace"))
        if error:
            return error
    return None


def described(error: BaseException) -> str:
    """An error of vLLM's engine, by its first cause where the engine's processes wrote one."""
    said = " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE_LENGTH]  # one line, as every message
    if not SECONDARY.search(said):
        return said
    killed = KILLED.search(said)
    if killed:  # whatever else stands in the log, it did not end by that
        return f"its process {killed[1]} was killed by signal {killed[2]}"
    written = error_in_own_logs()
    return written or f"one of its processes was killed or crashed, without a word in the log ({said[:120]})"
