"""The report on another version: what applies, what moved, what conflicts, what upstream has already."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from stack_fixture import NEW1, PACKAGE, PRISTINE, make_patches, make_wheel, stack_one, write_files

from gptoss_rl.stack.report import fit_stack, load_tree, report
from gptoss_rl.stack.series import Stack, load_stack
from gptoss_rl.stack.unified_diff import PatchStackError

ALPHA = f"{PACKAGE}/alpha.py"
BODY = b"".join(b"line %d\n" % n for n in range(1, 61))


def changed(*pairs: tuple[bytes, bytes], body: bytes = BODY) -> dict[str, bytes]:
    for old, new in pairs:
        assert body.count(old) == 1
        body = body.replace(old, new)
    return {f"{PACKAGE}/__init__.py": b"", ALPHA: body}


BASE = changed()
FIRST = changed((b"line 10\n", b"ten\nten and a half\n"))
SECOND = changed((b"line 40\n", b"forty\n"), body=FIRST[ALPHA])
THIRD = changed((b"ten and a half\n", b"10.5\n"), body=SECOND[ALPHA])


@pytest.fixture
def stack(tmp_path) -> Stack:
    steps = (("first.patch", FIRST), ("second.patch", SECOND), ("third.patch", THIRD))
    return load_stack(make_patches(tmp_path / "patches", *steps, pristine=BASE))


def outcomes(tree: dict[str, bytes], stack: Stack) -> list[tuple[str, str, str]]:
    return [(found.patch, found.outcome, found.note) for found in fit_stack(tree, stack)]


def test_the_version_it_was_made_for_applies(stack):
    assert [row[1] for row in outcomes(BASE, stack)] == ["applies"] * 3


def test_lines_added_above_move_every_hunk_by_as_many(stack):
    tree = {**BASE, ALPHA: b"# a\n# b\n" + BODY}
    assert {row[1:] for row in outcomes(tree, stack)} == {("moved", "by +2 lines")}


def test_lines_added_between_move_only_what_is_below(stack):
    tree = changed((b"line 20\n", b"line 20\nmore\n"))
    assert [row[1:] for row in outcomes(tree, stack)] == [
        ("applies", ""),
        ("moved", "by +1 lines"),
        ("applies", ""),
    ]


def test_a_conflict_shows_both_sides_and_what_follows_from_it(stack):
    tree = changed((b"line 9\n", b"line nine\n"))
    first, second, third = fit_stack(tree, stack)
    assert first.outcome == third.outcome == "conflict"
    assert "near line 7" in first.detail[0]
    assert "  - line 9" in first.detail
    assert "  + line nine" in first.detail
    # only the lines of the hunk are shown, not the margin that was used to align them
    assert not any("line 6" in row or "line 14" in row for row in first.detail)
    # the first patch's two lines for one are not there, so the second hunk is one line up
    assert (second.outcome, second.note) == ("moved", "by -1 lines")
    assert third.note == "perhaps because first.patch conflicts in this file"


def test_a_conflict_in_the_last_line_shows_what_is_there_instead(stack):
    detail = fit_stack(changed((b"line 13\n", b"line thirteen\n")), stack)[0].detail
    assert detail[-2:] == ("  - line 13", "  + line thirteen")


def test_a_hunk_with_nothing_like_it_says_so(stack):
    assert "nothing like these lines" in fit_stack({**BASE, ALPHA: b"x\n" * 50}, stack)[0].detail[0]


def test_what_upstream_has_already_is_not_applied_twice(stack):
    assert [row[1] for row in outcomes(FIRST, stack)] == ["already upstream", "applies", "applies"]
    # all of it, and further down; later patches have changed what the first one made
    tree = {**THIRD, ALPHA: b"# a\n" + THIRD[ALPHA]}
    assert [row[1:] for row in outcomes(tree, stack)][1:] == [
        ("already upstream", "at line 39"),
        ("already upstream", "at line 9"),
    ]


def test_lines_that_are_in_several_places_are_pointed_out(stack):
    tree = {**BASE, ALPHA: b"# a\n" + BODY + BODY}
    assert outcomes(tree, stack)[0][1:] == (
        "moved",
        "by +1 lines; the same lines are in 2 places, so look at this one",
    )


def test_a_missing_file_says_where_its_lines_went(stack):
    tree = {f"{PACKAGE}/__init__.py": b"", f"{PACKAGE}/sub/renamed.py": BODY}
    rows = outcomes(tree, stack)
    assert rows[0] == ("first.patch", "file missing", f"its lines are in {PACKAGE}/sub/renamed.py:7")
    assert rows[2] == ("third.patch", "file missing", "its lines are in no other file")


def test_created_and_deleted_files(tmp_path):
    stack = load_stack(stack_one(tmp_path / "patches"))
    extra, gamma = f"{PACKAGE}/extra.py", f"{PACKAGE}/gamma.py"

    def fate(tree: dict[str, bytes]) -> dict[str, str]:
        return {found.path: found.outcome for found in fit_stack(tree, stack) if found.path in (extra, gamma)}

    assert fate(PRISTINE) == {extra: "applies", gamma: "applies"}
    assert fate(NEW1) == {extra: "already upstream", gamma: "already upstream"}
    assert fate({**PRISTINE, extra: b"x\n", gamma: b"x\n"}) == {extra: "conflict", gamma: "conflict"}


def test_a_tree_is_read_from_a_folder_a_wheel_and_an_sdist(tmp_path):
    write_files(tmp_path / "checkout", PRISTINE)
    wheel = make_wheel(tmp_path)
    # wheels with a platform tag keep their Python files below *.data/purelib
    data = tmp_path / "data.whl"
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in PRISTINE.items():
            archive.writestr(f"fakelib-1.0.data/purelib/{name}", content)
    sdist = tmp_path / "fakelib-1.0.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(tmp_path / "checkout", "fakelib-1.0")
    for source in (tmp_path / "checkout", tmp_path / "checkout" / PACKAGE, wheel, data, sdist):
        assert load_tree(str(source), PACKAGE)[1] == PRISTINE
    for source, problem in [
        (tmp_path, "holds no package fakelib"),
        (tmp_path / "none", "neither a folder"),
        (Path(__file__), "neither a wheel nor an sdist"),
    ]:
        with pytest.raises(PatchStackError, match=problem):
            load_tree(str(source), PACKAGE)


def test_a_version_is_downloaded_by_pip(tmp_path, monkeypatch):
    make_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert load_tree("1.0", PACKAGE) == (f"{PACKAGE} 1.0", PRISTINE)
    with pytest.raises(PatchStackError, match=r"pip could not download fakelib==7\.0: ERROR: No matching distribution"):
        load_tree("7.0", PACKAGE)


def test_the_exit_code_says_whether_every_hunk_found_its_place(tmp_path, stack, capsys):
    checkout = tmp_path / "checkout"
    for tree, code in [
        (BASE, 0),
        ({**BASE, ALPHA: b"# a\n" + BODY}, 0),
        (FIRST, 1),  # a patch that upstream has is to be dropped
        (changed((b"line 9\n", b"line nine\n")), 1),
    ]:
        shutil.rmtree(checkout, ignore_errors=True)
        write_files(checkout, tree)
        assert report(str(checkout), stack) == code
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # patch, hunks, applies, moved, conflict, file missing, already upstream
    assert rows[-4:] == [
        ["first.patch", "1", "0", "0", "1", "0", "0"],
        ["second.patch", "1", "0", "1", "0", "0", "0"],
        ["third.patch", "1", "0", "0", "1", "0", "0"],
        ["sum", "3", "0", "1", "2", "0", "0"],
    ]
