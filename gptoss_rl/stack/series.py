"""The repository's side of the patch stack: `patches/BASE`, `patches/series`, patch headers and the table.

Format of a patch header (the text before its diff):

    Subject: vllm_engine: pass LoRA and memory options to vLLM

    <symptom as seen, cause, what was rejected and why>

    Reason: fix | feature | environment
    Behaviour: what is identical to upstream when the flag is off
    Forwarded: <upstream link> | no | not-needed: <why>
    Drop-When: openrlhf >= X, or a condition someone can test
    Test: tests/test_x.py::test_y, tests/test_x.py::test_z

An indented line continues the field above it.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from gptoss_rl.stack.unified_diff import Patch, PatchStackError, Tree, apply_patch, parse_patch

ROOT = Path(__file__).resolve().parent.parent.parent
PATCHES = ROOT / "patches"
TABLE_FILES = (PATCHES / "README.md",)
TABLE_BEGIN = "<!-- patch-table:begin -->"
TABLE_END = "<!-- patch-table:end -->"
REASONS = ("fix", "feature", "environment")
FIELDS = ("Subject", "Reason", "Behaviour", "Forwarded", "Drop-When", "Test")
_BASE_KEYS = ("package", "version", "tree-sha256")


@dataclass(frozen=True)
class Base:
    """What the series applies to. `tree_sha256` is `tree_fingerprint` of the hashes in the wheel's RECORD."""

    package: str
    version: str
    tree_sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Stack:
    base: Base
    patches: tuple[Patch, ...]

    def apply(self, pristine: Tree) -> Tree:
        """Pristine + series, in memory.

        Raises:
            PatchError: a patch does not apply exactly.
        """
        tree = pristine
        for patch in self.patches:
            tree = apply_patch(tree, patch)
        return tree


@dataclass(frozen=True)
class Header:
    subject: str
    prose: str
    reason: str
    behaviour: str
    forwarded: str
    drop_when: str
    tests: tuple[str, ...]  # "tests/test_x.py::test_y"


def load_stack(folder: Path = PATCHES) -> Stack:
    """Reads BASE, the series and every patch in it.

    Raises:
        PatchStackError: a file is missing, the series and the folder disagree, or a file is malformed.
    """
    base = _read_base(folder / "BASE")
    names = _read_series(folder / "series")
    present = {path.name for path in folder.glob("*.patch")}
    if missing := [name for name in names if name not in present]:
        raise PatchStackError(f"{folder / 'series'} names {', '.join(missing)}, which is not in {folder}")
    if extra := sorted(present - set(names)):
        raise PatchStackError(f"{', '.join(extra)} in {folder} is not in its series: add it there or delete it")
    patches = (parse_patch(name, (folder / name).read_bytes(), base.package) for name in names)
    return Stack(base, tuple(patches))


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines without comments and blanks."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PatchStackError(f"{path} does not exist: this is not a checkout of the patch stack") from error
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _read_base(path: Path) -> Base:
    values: dict[str, str] = {}
    for number, line in _read_lines(path):
        key, _, value = line.partition(":")
        if key not in _BASE_KEYS or key in values or not value.strip():
            raise PatchStackError(f"{path}, line {number}: expected one each of {', '.join(_BASE_KEYS)}: {line!r}")
        values[key] = value.strip()
    if absent := [key for key in _BASE_KEYS if key not in values]:
        raise PatchStackError(f"{path} does not say {', '.join(absent)}")
    return Base(values["package"], values["version"], values["tree-sha256"])


def _read_series(path: Path) -> list[str]:
    names: list[str] = []
    for number, line in _read_lines(path):
        if not re.fullmatch(r"\w[\w.-]*\.patch", line):
            raise PatchStackError(f"{path}, line {number}: {line!r} is not the name of a patch file")
        if line in names:
            raise PatchStackError(f"{path}, line {number}: {line} is there twice")
        names.append(line)
    return names


def parse_header(patch: Patch) -> Header:
    """The header's fields, continuation lines joined.

    Raises:
        PatchStackError: a field is missing, empty, there twice, or has a value outside its format.
    """
    fields, prose = _split_header(patch)
    for field in FIELDS:
        if not fields.get(field):
            raise PatchStackError(f"{patch.name}: its header has no {field}")
    if not re.match(r"[\w/.-]+: \S", fields["Subject"]):
        raise PatchStackError(f"{patch.name}: Subject is not '<part>: <what it does>': {fields['Subject']!r}")
    if not prose:
        raise PatchStackError(f"{patch.name}: nothing between Subject and Reason: symptom, cause, what was rejected")
    if fields["Reason"] not in REASONS:
        raise PatchStackError(f"{patch.name}: Reason is {fields['Reason']!r}, not one of {', '.join(REASONS)}")
    if not re.match(r"https?://\S+$|no$|not-needed: \S", fields["Forwarded"]):
        raise PatchStackError(f"{patch.name}: Forwarded is {fields['Forwarded']!r}, not a link, 'no' or 'not-needed: <why>'")
    tests = tuple(re.split(r"[,\s]+", fields["Test"]))
    for test in tests:
        if not re.fullmatch(r"[\w/]+\.py::test_\w+", test):
            raise PatchStackError(f"{patch.name}: Test {test!r} is not 'tests/test_x.py::test_y'")
    return Header(
        fields["Subject"],
        prose,
        fields["Reason"],
        fields["Behaviour"],
        fields["Forwarded"],
        fields["Drop-When"],
        tests,
    )


def _split_header(patch: Patch) -> tuple[dict[str, str], str]:
    fields: dict[str, str] = {}
    prose: list[str] = []
    current = ""
    for line in patch.header.splitlines():
        key, colon, value = line.partition(":")
        if colon and key in FIELDS:
            if key in fields:
                raise PatchStackError(f"{patch.name}: its header has {key} twice")
            fields[key] = value.strip()
            current = key
        elif current and line[:1] in (" ", "\t") and line.strip():
            fields[current] = f"{fields[current]} {line.strip()}".strip()
        elif line.strip():
            # Only prose between Subject and the fields is a description; elsewhere it is a typing error.
            if set(fields) != {"Subject"}:
                raise PatchStackError(f"{patch.name}: unexpected text in its header: {line!r}")
            prose.append(line)
            current = ""
        else:
            current = ""
    return fields, "\n".join(prose)


def missing_tests(header: Header, root: Path = ROOT) -> list[str]:
    """The tests a header names that are not functions at the top level of the file it names."""
    return [test for test in header.tests if not _has_test(root, *test.split("::"))]


def _has_test(root: Path, file: str, function: str) -> bool:
    path = root / file
    if not path.is_file():
        return False
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in nodes)


def render_table(stack: Stack) -> str:
    """The Markdown table of the series, a line a patch."""
    rows = ["| patch | what it does | reason | drop when |", "|---|---|---|---|"]
    for patch in stack.patches:
        header = parse_header(patch)
        cells = (f"`{patch.name}`", header.subject, header.reason, header.drop_when)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def with_table(text: str, table: str, name: str) -> str:
    """`text` with `table` between its two markers.

    Raises:
        PatchStackError: `text` (of the file `name`) does not have each marker exactly once, in order.
    """
    if text.count(TABLE_BEGIN) != 1 or text.count(TABLE_END) != 1:
        raise PatchStackError(f"{name} does not have {TABLE_BEGIN} and {TABLE_END} once each")
    before, _, rest = text.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not end:
        raise PatchStackError(f"{name} has {TABLE_END} before {TABLE_BEGIN}")
    return f"{before}{TABLE_BEGIN}\n{table}\n{TABLE_END}{after}"


def stale_tables(stack: Stack, files: tuple[Path, ...] = TABLE_FILES) -> list[Path]:
    """The files that do not exist or whose table is not the one `render_table` gives now."""
    table = render_table(stack)
    return [path for path in files if not path.is_file() or _with_table(path, table) != _read(path)]


def write_tables(stack: Stack, files: tuple[Path, ...] = TABLE_FILES) -> list[Path]:
    """Brings the tables up to date; returns the files that changed.

    Raises:
        PatchStackError: a file is not there or has no markers; none is written then.
    """
    table = render_table(stack)
    if absent := [str(path) for path in files if not path.is_file()]:
        raise PatchStackError(f"no {', '.join(absent)} to write the table into")
    new = {path: _with_table(path, table) for path in files}
    changed = [path for path in files if new[path] != _read(path)]
    for path in changed:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(new[path], encoding="utf-8")
        temporary.replace(path)
    return changed


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _with_table(path: Path, table: str) -> str:
    return with_table(_read(path), table, str(path))
