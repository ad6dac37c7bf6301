"""A strict unified-diff parser and applier: a hunk applies at its stated line, byte for byte, or not at all.

`patch` accepts fuzz, and `git apply` inside an environment that lies in a repository exits 0 and applies
nothing; either one can leave a package that is neither upstream's nor ours. So the diffs are applied here,
in memory, on `Tree`s. Standard library only: this runs before anything else is installed.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

# Path relative to site-packages ("openrlhf/models/actor.py") -> content.
Tree = dict[str, bytes]

CONTEXT = 3  # lines of context before and after a change, except at the ends of a file
DEV_NULL = "/dev/null"
_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(?: .*)?\n")
_DIFF_START = (b"diff --git ", b"--- a/", b"--- " + DEV_NULL.encode())


class PatchStackError(RuntimeError):
    """The patch stack, or the package it is for, cannot be worked with; says which and why."""


class PatchError(PatchStackError):
    """A patch is malformed or does not apply; names the patch and the line in it."""

    def __init__(self, patch: str, line: int, problem: str):
        super().__init__(f"{patch}, line {line}: {problem}")


@dataclass(frozen=True)
class Hunk:
    """One hunk. `old` and `new` are its two sides, lines with their newline; positions are 0-based."""

    line: int  # 1-based line of its @@ in the patch file
    old_index: int  # where `old` starts in the file before this patch
    new_index: int  # where `new` starts in the file after this patch
    body: tuple[tuple[bytes, bytes], ...]  # (" ", "-" or "+", line)

    @property
    def old(self) -> list[bytes]:
        return [text for mark, text in self.body if mark != b"+"]

    @property
    def new(self) -> list[bytes]:
        return [text for mark, text in self.body if mark != b"-"]

    @property
    def context(self) -> tuple[int, int]:
        """Number of unchanged lines before the first and after the last change."""
        changed = [index for index, (mark, _) in enumerate(self.body) if mark != b" "]
        return changed[0], len(self.body) - 1 - changed[-1]


@dataclass(frozen=True)
class FilePatch:
    path: str
    kind: str  # "modify", "create" or "delete"
    line: int  # 1-based line of its "---" in the patch file
    hunks: tuple[Hunk, ...]

    def count(self, mark: bytes) -> int:
        """Number of lines with `mark` (b"+" or b"-")."""
        return sum(found == mark for hunk in self.hunks for found, _ in hunk.body)


@dataclass(frozen=True)
class Patch:
    name: str
    header: str  # everything before the first diff
    files: tuple[FilePatch, ...]


def split_lines(data: bytes) -> list[bytes]:
    """Lines with their newline. Splits at \\n only: bytes.splitlines would also split at a lone \\r."""
    return re.findall(rb"[^\n]*\n|[^\n]+", data)


def show(line: bytes) -> str:
    """A line for a message: quoted, so that trailing blanks and tabs can be seen."""
    return repr(line.rstrip(b"\n").decode("utf-8", "replace"))


def parse_patch(name: str, data: bytes, package: str) -> Patch:
    """Parses one patch file whose paths are all below `a/<package>/` and `b/<package>/`.

    Raises:
        PatchError: anything this module would not apply exactly as written.
    """
    lines = split_lines(data)
    start = next((i for i, line in enumerate(lines) if line.startswith(_DIFF_START)), None)
    if start is None:
        raise PatchError(name, max(len(lines), 1), "no diff found (a line that starts with '--- a/')")
    if not data.endswith(b"\n"):
        raise PatchError(name, len(lines), "the file does not end with a newline; it was cut off")
    try:
        header = b"".join(lines[:start]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PatchError(name, 1, f"the header is not UTF-8: {error}") from error
    files: list[FilePatch] = []
    at = start
    while at < len(lines):
        file, at = _parse_file(name, lines, at, package)
        if any(file.path == other.path for other in files):
            raise PatchError(name, file.line, f"{file.path} is patched twice in one patch")
        files.append(file)
    return Patch(name, header, tuple(files))


def _parse_file(name: str, lines: list[bytes], at: int, package: str) -> tuple[FilePatch, int]:
    if lines[at].startswith(b"diff --git "):
        at += 1
        # A plain mode of 100644 is all that is written; anything else (renames, binary, an executable bit)
        # falls through to the error below.
        while at < len(lines) and re.match(rb"index |new file mode 100644|deleted file mode ", lines[at]):
            at += 1
    if at + 1 >= len(lines) or not (lines[at].startswith(b"--- ") and lines[at + 1].startswith(b"+++ ")):
        found = show(lines[at]) if at < len(lines) else "the end of the patch"
        raise PatchError(
            name,
            at + 1,
            f"expected '--- a/{package}/...' and '+++ b/{package}/...', found {found}"
            " (text after a diff, renames, mode changes and binary diffs are not accepted)",
        )
    old = _parse_path(name, lines[at], at + 1, "a", package)
    new = _parse_path(name, lines[at + 1], at + 2, "b", package)
    if old == new == DEV_NULL:
        raise PatchError(name, at + 1, "both sides are /dev/null")
    if DEV_NULL not in (old, new) and old != new:
        raise PatchError(name, at + 1, f"renames are not accepted: {old} to {new}")
    kind = "create" if old == DEV_NULL else "delete" if new == DEV_NULL else "modify"
    head, at = at, at + 2
    hunks: list[Hunk] = []
    while at < len(lines) and lines[at].startswith(b"@@"):
        hunk, at = _parse_hunk(name, lines, at)
        hunks.append(hunk)
    if not hunks:
        raise PatchError(name, head + 1, "a file without a hunk")
    if (kind == "create" and any(hunk.old for hunk in hunks)) or (kind == "delete" and any(hunk.new for hunk in hunks)):
        raise PatchError(name, head + 1, f"a file to {kind} has lines on its /dev/null side")
    return FilePatch(new if kind != "delete" else old, kind, head + 1, tuple(hunks)), at


def _parse_path(name: str, line: bytes, number: int, side: str, package: str) -> str:
    # diff(1) writes a tab and a time after the path.
    text = line[4:].rstrip(b"\n").split(b"\t")[0].decode("utf-8", "replace")
    if text == DEV_NULL:
        return text
    prefix, _, path = text.partition("/")
    parts = path.split("/")
    if prefix != side or parts[0] != package or len(parts) < 2:
        raise PatchError(name, number, f"path {text!r} is not {side}/{package}/...")
    if {"", ".", "..", "__pycache__"} & set(parts) or "\\" in path or PurePosixPath(path).suffix == ".pyc":
        raise PatchError(name, number, f"path {text!r} does not name a source file of {package}")
    return path


def _parse_hunk(name: str, lines: list[bytes], at: int) -> tuple[Hunk, int]:
    match = _HUNK.fullmatch(lines[at])
    if match is None:
        raise PatchError(name, at + 1, f"not a hunk header: {show(lines[at])}")
    old_start, old_left, new_start, new_left = (1 if group is None else int(group) for group in match.groups())
    # With no lines on a side, its number is that of the line before; otherwise that of the first line.
    old_index = old_start - 1 if old_left else old_start
    new_index = new_start - 1 if new_left else new_start
    head, at = at, at + 1
    body: list[tuple[bytes, bytes]] = []
    while old_left or new_left:
        if at >= len(lines):
            raise PatchError(name, head + 1, "the patch ends inside this hunk; its @@ line states more lines")
        mark, text = lines[at][:1], lines[at][1:]
        if mark not in (b" ", b"-", b"+"):
            hint = " (an editor has stripped the blank of an empty context line)" if lines[at] == b"\n" else ""
            raise PatchError(name, at + 1, f"inside a hunk, but not ' ', '-' or '+': {show(lines[at])}{hint}")
        old_left -= mark != b"+"
        new_left -= mark != b"-"
        if old_left < 0 or new_left < 0:
            raise PatchError(name, at + 1, f"the hunk of line {head + 1} has more lines than its @@ line states")
        at += 1
        if at < len(lines) and lines[at].startswith(b"\\ "):  # "\ No newline at end of file"
            text = text[:-1]
            at += 1
        body.append((mark, text))
    hunk = Hunk(head + 1, old_index, new_index, tuple(body))
    if all(mark == b" " for mark, _ in body):
        raise PatchError(name, head + 1, "a hunk that changes nothing")
    if any(not text.endswith(b"\n") for side in (hunk.old, hunk.new) for text in side[:-1]):
        raise PatchError(name, head + 1, "'No newline at end of file' before the last line of a hunk")
    return hunk, at


def apply_patch(tree: Tree, patch: Patch) -> Tree:
    """The tree after `patch`; `tree` itself is not changed.

    Raises:
        PatchError: some hunk is not at its stated line with exactly its lines; nothing is applied then.
    """
    result = dict(tree)
    for file in patch.files:
        if (file.kind == "create") == (file.path in tree):
            state = "exists already" if file.kind == "create" else "does not exist"
            raise PatchError(patch.name, file.line, f"{file.path} {state}")
        lines = _apply_file(patch.name, file, split_lines(tree.get(file.path, b"")))
        if file.kind == "delete":
            if lines:
                raise PatchError(patch.name, file.line, f"{file.path} would be deleted, but has other lines too")
            del result[file.path]
        else:
            result[file.path] = b"".join(lines)
    return result


def _apply_file(name: str, file: FilePatch, lines: list[bytes]) -> list[bytes]:
    out: list[bytes] = []
    done = 0  # lines of the old file already in `out`
    for hunk in file.hunks:
        start, end = hunk.old_index, hunk.old_index + len(hunk.old)
        if start < done:
            raise PatchError(name, hunk.line, "overlaps the hunk before it")
        _require_lines(name, file, hunk, lines)
        before, after = hunk.context
        short = (before < CONTEXT and start > 0) or (after < CONTEXT and end < len(lines))
        if short and file.kind == "modify":
            raise PatchError(name, hunk.line, f"has fewer than {CONTEXT} lines of context ({before}, {after})")
        out += lines[done:start]
        if len(out) != hunk.new_index:
            raise PatchError(name, hunk.line, f"states new line {hunk.new_index + 1}, it would be {len(out) + 1}")
        out += hunk.new
        done = end
    return out + lines[done:]


def _require_lines(name: str, file: FilePatch, hunk: Hunk, lines: list[bytes]) -> None:
    for offset, expected in enumerate(hunk.old):
        number = hunk.old_index + offset
        found = lines[number] if number < len(lines) else None
        if found != expected:
            there = "the file ends before it" if found is None else f"found {show(found)}"
            raise PatchError(
                name,
                hunk.line,
                f"does not apply to {file.path} (no fuzz, no offset): line {number + 1} should be {show(expected)}, {there}",
            )
