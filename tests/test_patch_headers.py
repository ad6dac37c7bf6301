"""Every patch says what it is for, in fields that can be checked; the tables made of them are current."""

import pytest
from stack_fixture import HALF, HEADER, NEW1, make_patches

from gptoss_rl.stack.series import (
    TABLE_BEGIN,
    TABLE_END,
    TABLE_FILES,
    load_stack,
    missing_tests,
    parse_header,
    render_table,
    stale_tables,
    with_table,
    write_tables,
)
from gptoss_rl.stack.unified_diff import Patch, PatchStackError


def header(text: str):
    return parse_header(Patch("a.patch", text, ()))


def test_every_patch_of_the_series_has_a_whole_header_and_its_tests_exist():
    stack = load_stack()
    assert stack.patches
    missing = {patch.name: missing_tests(parse_header(patch)) for patch in stack.patches}
    assert {name: tests for name, tests in missing.items() if tests} == {}


def test_the_tables_are_current():
    # Remedy: bash apply_patches.sh --write-table
    assert [path.name for path in stale_tables(load_stack(), TABLE_FILES)] == []


def test_a_header_is_read():
    read = header(HEADER)
    assert (read.subject, read.reason) == ("fakelib: change what it says", "fix")
    assert read.prose == "It says the wrong thing."
    assert read.drop_when == "fakelib >= 2"
    assert read.tests == ("tests/test_patch_stack.py::test_apply_makes_the_package_pristine_plus_series",)


def test_a_field_may_go_on_in_an_indented_line():
    read = header(HEADER.replace("Behaviour: as upstream when off", "Behaviour: as upstream\n  when off"))
    assert read.behaviour == "as upstream when off"
    tests = "Test: tests/test_a.py::test_b,\n  tests/test_a.py::test_c\n"
    assert len(header(HEADER[: HEADER.index("Test:")] + tests).tests) == 2


@pytest.mark.parametrize("field", ["Subject", "Reason", "Behaviour", "Forwarded", "Drop-When", "Test"])
def test_a_missing_or_empty_field_is_named(field):
    line = next(line for line in HEADER.splitlines() if line.startswith(field))
    for text in (HEADER.replace(line, f"{field}:"), HEADER.replace(f"{line}\n", "")):
        with pytest.raises(PatchStackError, match=rf"a\.patch: .*({field}|unexpected text)"):
            header(text)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("It says the wrong thing.", "", "nothing between Subject and Reason"),
        ("Reason: fix", "Reason: bugfix", "Reason is 'bugfix'"),
        ("Reason: fix", "Reason: fix\nReason: fix", "Reason twice"),
        ("Forwarded: no", "Forwarded: later", "Forwarded is 'later'"),
        ("Forwarded: no", "Forwarded: not-needed", "Forwarded is 'not-needed'"),
        ("Subject: fakelib: change", "Subject: change", "Subject is not"),
        ("Drop-When: fakelib", "Drop-when: fakelib", "unexpected text in its header: 'Drop-when"),
        ("tests/test_patch_stack.py::test_apply", "tests/test_patch_stack.py::apply", "Test 'tests/"),
    ],
)
def test_a_wrong_value_is_named(old, new, problem):
    assert old in HEADER
    with pytest.raises(PatchStackError, match=problem):
        header(HEADER.replace(old, new))


def test_a_test_that_does_not_exist_is_reported(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text(
        "def test_real(): pass\n# def test_comment(): pass\nclass TestX:\n    def test_method(self): pass\n"
    )
    names = [
        "test_a.py::test_real",
        "test_a.py::test_comment",
        "test_a.py::test_method",
        "test_b.py::test_real",
    ]
    tests = ", ".join(f"tests/{name}" for name in names)
    read = header(HEADER[: HEADER.index("Test:")] + f"Test: {tests}\n")
    assert missing_tests(read, tmp_path) == [f"tests/{name}" for name in names[1:]]


def test_the_table_has_a_line_a_patch_in_series_order(tmp_path):
    stack = load_stack(make_patches(tmp_path / "patches", ("z.patch", HALF), ("a.patch", NEW1)))
    rows = render_table(stack).splitlines()
    assert rows[0] == "| patch | what it does | reason | drop when |"
    assert rows[2:] == [f"| `{name}` | fakelib: change what it says | fix | fakelib >= 2 |" for name in ("z.patch", "a.patch")]


def test_a_stale_table_is_found_and_written(tmp_path):
    stack = load_stack(make_patches(tmp_path / "patches", ("a.patch", HALF)))
    one, two = tmp_path / "one.md", tmp_path / "two.md"
    for path in (one, two):
        path.write_text(f"# Title\n\n{TABLE_BEGIN}\nold\n{TABLE_END}\n\nafter\n")
    assert stale_tables(stack, (one, two)) == [one, two]
    assert write_tables(stack, (one, two)) == [one, two]
    assert stale_tables(stack, (one, two)) == []
    assert write_tables(stack, (one, two)) == []
    text = one.read_text()
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\nafter\n")
    one.write_text(text.replace("fakelib >= 2", "fakelib >= 3"))
    two.unlink()
    assert stale_tables(stack, (one, two)) == [one, two]
    with pytest.raises(PatchStackError, match=r"no .*two\.md to write the table into"):
        write_tables(stack, (one, two))


@pytest.mark.parametrize("text", ["", TABLE_BEGIN, f"{TABLE_END}{TABLE_BEGIN}", f"{TABLE_BEGIN}{TABLE_BEGIN}{TABLE_END}"])
def test_a_file_without_its_markers_is_refused(text):
    with pytest.raises(PatchStackError, match=r"x\.md"):
        with_table(text, "table", "x.md")
