"""How each hunk of the series fares on another OpenRLHF: what someone needs to know after `pip install -U`.

Where the strict applier says "no", this one searches: a hunk that moved is applied where its lines are now,
one that is upstream already is left out, and a conflict is shown beside the nearest thing there is. Later
patches see the tree with the earlier hunks applied, as far as that went. Nothing is installed or changed.
"""

import difflib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptoss_rl.stack.installed import read_tree
from gptoss_rl.stack.series import Stack
from gptoss_rl.stack.unified_diff import FilePatch, Hunk, Patch, PatchStackError, Tree, show, split_lines

APPLIES, MOVED, CONFLICT, MISSING, UPSTREAM = (
    "applies",
    "moved",
    "conflict",
    "file missing",
    "already upstream",
)
OUTCOMES = (APPLIES, MOVED, CONFLICT, MISSING, UPSTREAM)
MARGIN = 3  # lines shown before and after the nearest match of a conflict


@dataclass(frozen=True)
class Finding:
    """What became of one hunk. `line` is where it belongs by the patch, 1-based."""

    patch: str
    path: str
    line: int
    outcome: str
    note: str = ""  # on the same line of the report
    detail: tuple[str, ...] = ()  # below it


# ---- Where the other tree comes from


def load_tree(source: str, package: str) -> tuple[str, Tree]:
    """(label, tree) of a folder, a wheel or sdist, or a version that pip downloads.

    Raises:
        PatchStackError: there is no such folder, archive or version, or `package` is not in it.
    """
    path = Path(source)
    if path.is_dir():
        root = path if path.name == package and (path / "__init__.py").is_file() else path / package
        tree = read_tree(root.resolve())
        label = str(path)
    elif path.is_file():
        tree, label = _read_archive(path, package), path.name
    elif re.fullmatch(r"\d+(\.\w+)*", source):
        tree, label = _download(source, package), f"{package} {source}"
    else:
        raise PatchStackError(f"{source} is neither a folder, an archive nor a version of {package}")
    if f"{package}/__init__.py" not in tree:
        raise PatchStackError(f"{source} holds no package {package}")
    return label, tree


def _download(version: str, package: str) -> Tree:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True)
        files = sorted(Path(folder).iterdir())
        if done.returncode or not files:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise PatchStackError(f"pip could not download {package}=={version}: {last}")
        return _read_archive(files[0], package)


def _read_archive(path: Path, package: str) -> Tree:
    """The package's files in a wheel (where they can lie below `*.data/purelib/`) or in an sdist."""
    inside = re.compile(rf"(?:[^/]+\.data/(?:purelib|platlib)/|[^/]+-[^/]+/)?({package}/.+)")
    tree: Tree = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if (match := inside.fullmatch(name)) and not name.endswith("/"):
                    tree[match[1]] = archive.read(name)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                if (match := inside.fullmatch(member.name)) and (data := archive.extractfile(member)):
                    tree[match[1]] = data.read()
    else:
        raise PatchStackError(f"{path} is neither a wheel nor an sdist")
    return tree


# ---- Fitting


def fit_stack(tree: Tree, stack: Stack) -> list[Finding]:
    """One finding for each hunk, in series order."""
    tree = dict(tree)
    findings: list[Finding] = []
    broken: dict[str, str] = {}  # path -> the first patch that could not be applied to it
    for patch in stack.patches:
        for file in patch.files:
            new = fit_file(tree, patch, file, broken.get(file.path))
            if any(finding.outcome in (CONFLICT, MISSING) for finding in new):
                broken.setdefault(file.path, patch.name)
            findings += new
    return findings


def fit_file(tree: Tree, patch: Patch, file: FilePatch, broken: str | None = None) -> list[Finding]:
    """Fits one file's hunks and applies to `tree`, in place, what can be."""
    if file.kind != "modify" or file.path not in tree:
        return _fit_whole_file(tree, patch, file)
    lines = split_lines(tree[file.path])
    findings: list[Finding] = []
    grown = drift = floor = 0  # lines added so far; how far the last hunk had moved; end of the last hunk
    for hunk in file.hunks:
        expected = hunk.old_index + grown
        outcome, at, note = _place(lines, hunk, expected, drift, floor)
        detail: tuple[str, ...] = ()
        if outcome in (APPLIES, MOVED):
            lines[at : at + len(hunk.old)] = hunk.new
            grown += len(hunk.new) - len(hunk.old)
            drift, floor = at - expected, at + len(hunk.new)
        elif outcome == UPSTREAM:
            # Its lines are there without us, so what follows is as far down as if it had been applied.
            grown += len(hunk.new) - len(hunk.old)
            floor = at + len(hunk.new)
        else:
            note = f"perhaps because {broken} conflicts in this file" if broken else ""
            detail = _nearest(lines, hunk, expected + drift)
        findings.append(Finding(patch.name, file.path, hunk.old_index + 1, outcome, note, detail))
    tree[file.path] = b"".join(lines)
    return findings


def _fit_whole_file(tree: Tree, patch: Patch, file: FilePatch) -> list[Finding]:
    def all_hunks(outcome: str, note: Callable[[Hunk], str]) -> list[Finding]:
        return [Finding(patch.name, file.path, h.old_index + 1, outcome, note(h)) for h in file.hunks]

    present = tree.get(file.path)
    if file.kind == "modify":
        return all_hunks(MISSING, lambda hunk: _elsewhere(tree, hunk))
    if file.kind == "create":
        content = b"".join(file.hunks[0].new)
        if present is None:
            tree[file.path] = content
            return all_hunks(APPLIES, lambda _: "new file")
        if present == content:
            return all_hunks(UPSTREAM, lambda _: "the same file is there")
        return all_hunks(CONFLICT, lambda _: "the patch creates this file, and another one is there")
    if present is None:
        return all_hunks(UPSTREAM, lambda _: "the file is gone there too")
    if present == b"".join(file.hunks[0].old):
        del tree[file.path]
        return all_hunks(APPLIES, lambda _: "file deleted")
    return all_hunks(CONFLICT, lambda _: "the patch deletes this file, and its content is another")


def _place(lines: list[bytes], hunk: Hunk, expected: int, drift: int, floor: int) -> tuple[str, int, str]:
    """(outcome, 0-based index, note). `drift` is how far the hunk before had moved."""
    found = _positions(lines, hunk.old, floor)
    if expected in found:
        return APPLIES, expected, ""
    there = _positions(lines, hunk.new, floor)

    def distance(at: int) -> int:
        return abs(at - expected - drift)

    # Context alone can match in many places, so the patched text wins when it is as near as the unpatched.
    if there and (not found or min(map(distance, there)) <= min(map(distance, found))):
        at = min(there, key=distance)
        return UPSTREAM, at, f"at line {at + 1}"
    if not found:
        return CONFLICT, -1, ""
    at = min(found, key=distance)
    note = f"by {at - expected:+d} lines"
    if len(found) > 1:
        note += f"; the same lines are in {len(found)} places, so look at this one"
    return MOVED, at, note


def _positions(lines: list[bytes], wanted: list[bytes], floor: int) -> list[int]:
    if not wanted:
        return []
    last = len(lines) - len(wanted)
    return [at for at in range(floor, last + 1) if lines[at : at + len(wanted)] == wanted]


def _elsewhere(tree: Tree, hunk: Hunk) -> str:
    """Names the other files that hold a hunk's old lines: upstream splits and renames files."""
    places = []
    for path, content in sorted(tree.items()):
        if found := _positions(split_lines(content), hunk.old, 0):
            places.append(f"{path}:{found[0] + 1}")
    return f"its lines are in {', '.join(places)}" if places else "its lines are in no other file"


def _nearest(lines: list[bytes], hunk: Hunk, expected: int) -> tuple[str, ...]:
    """The hunk's old side beside the stretch of the file that shares most lines with it."""
    wanted = Counter(line.strip() for line in hunk.old if len(line.strip()) > 3)
    size = len(hunk.old)
    best, best_score = 0, 0
    for at in sorted(range(max(len(lines) - size, 0) + 1), key=lambda at: abs(at - expected)):
        score = sum((wanted & Counter(line.strip() for line in lines[at : at + size])).values())
        if score > best_score:
            best, best_score = at, score
    if not best_score:
        return ("nothing like these lines is in the file:", *(f"  - {show(line)[1:-1]}" for line in hunk.old))
    window = lines[max(best - MARGIN, 0) : best + size + MARGIN]
    text = [[line.rstrip(b"\n").decode("utf-8", "replace") for line in side] for side in (hunk.old, window)]
    # Not ndiff: it pairs lines that look alike, whatever is between them. Rows 1-3 are a header.
    diff = list(difflib.unified_diff(*text, n=len(window), lineterm=""))[3:]
    rows = [f"{row[0]} {row[1:]}" for row in diff]
    rows = _without_margin(_without_margin(rows)[::-1])[::-1]
    return (f"- what the patch expects, + what is there near line {best + 1}:", *(f"  {row}" for row in rows))


def _without_margin(rows: list[str]) -> list[str]:
    """Without the file's lines before the hunk's first, but for as many as it expects there and are not."""
    marks = "".join(row[0] for row in rows)
    added = len(marks) - len(marks.lstrip("+"))
    expected = len(marks[added:]) - len(marks[added:].lstrip("-"))
    return rows[max(added - expected, 0) :]


# ---- Printing


def render_report(findings: list[Finding], label: str, stack: Stack) -> str:
    out = [f"{len(stack.patches)} patches made for {stack.base}, tried on {label}", ""]
    last: tuple[str, str] | None = None
    for finding in findings:
        if (finding.patch, finding.path) != last:
            out.append(f"{finding.patch}  {finding.path}")
            last = (finding.patch, finding.path)
        note = f" ({finding.note})" if finding.note else ""
        out.append(f"  line {finding.line}: {finding.outcome}{note}")
        out += [f"    {row}" for row in finding.detail]
    out += ["", *_summary(findings, stack)]
    return "\n".join(out)


def _summary(findings: list[Finding], stack: Stack) -> list[str]:
    counts = {patch.name: Counter(f.outcome for f in findings if f.patch == patch.name) for patch in stack.patches}
    width = max([len("patch"), *map(len, counts)])
    rows = [f"{'patch':<{width}}  hunks  " + "  ".join(OUTCOMES)]
    for name, count in [*counts.items(), ("sum", sum(counts.values(), Counter()))]:
        cells = "  ".join(f"{count[outcome]:>{len(outcome)}}" for outcome in OUTCOMES)
        rows.append(f"{name:<{width}}  {count.total():>5}  {cells}")
    return rows


def report(source: str, stack: Stack) -> int:
    """Prints the report; 0 if every hunk applies or has only moved, else 1."""
    label, tree = load_tree(source, stack.base.package)
    findings = fit_stack(tree, stack)
    print(render_report(findings, label, stack))
    return 0 if all(finding.outcome in (APPLIES, MOVED) for finding in findings) else 1
