"""The applier takes a hunk at its stated line with exactly its lines, and nothing else."""

import pytest

from gptoss_rl.stack.unified_diff import PatchError, apply_patch, parse_patch, split_lines

OLD = b"".join(b"line %d\n" % n for n in range(1, 21))
NEW = OLD.replace(b"line 10\n", b"line ten\nand a half\n")
GOOD = """\
Subject: x: y

diff --git a/pkg/m.py b/pkg/m.py
index 123..456 100644
--- a/pkg/m.py
+++ b/pkg/m.py
@@ -7,7 +7,8 @@ def context():
 line 7
 line 8
 line 9
-line 10
+line ten
+and a half
 line 11
 line 12
 line 13
"""


def run(text: str, content: bytes | None = OLD) -> dict[str, bytes]:
    tree = {} if content is None else {"pkg/m.py": content}
    return apply_patch(tree, parse_patch("a.patch", text.encode(), "pkg"))


def test_a_good_patch_applies_and_leaves_its_input_alone():
    tree = {"pkg/m.py": OLD}
    patch = parse_patch("a.patch", GOOD.encode(), "pkg")
    assert apply_patch(tree, patch) == {"pkg/m.py": NEW}
    assert tree == {"pkg/m.py": OLD}
    assert patch.header == "Subject: x: y\n\n"


@pytest.mark.parametrize(
    "content",
    [
        b"one line more\n" + OLD,  # offset
        OLD.replace(b"line 7\n", b"line seven\n"),  # first line of context
        OLD.replace(b"line 13\n", b"line 13 \n"),  # a blank at the end of a line
        OLD.replace(b"line 12\n", b"line 12\r\n"),  # line ending
        OLD.replace(b"line 10\n", b""),
        b"",
        OLD[: OLD.index(b"line 13")],  # the file ends inside the hunk
        NEW,  # applied already
    ],
)
def test_fuzz_and_offset_are_refused(content):
    with pytest.raises(PatchError, match=r"a\.patch, line 7: does not apply to pkg/m\.py \(no fuzz, no offset\)"):
        run(GOOD, content)


def test_a_hunk_with_too_little_context_is_refused():
    text = GOOD.replace("@@ -7,7 +7,8 @@ def context():\n line 7\n", "@@ -8,6 +8,7 @@\n")
    with pytest.raises(PatchError, match="fewer than 3 lines of context"):
        run(text)


def test_less_context_is_right_at_the_ends_of_a_file():
    text = "--- a/pkg/m.py\n+++ b/pkg/m.py\n@@ -1,2 +1,3 @@\n+zero\n one\n two\n"
    assert run(text, b"one\ntwo\n")["pkg/m.py"] == b"zero\none\ntwo\n"


def test_files_are_created_and_deleted():
    create = "--- /dev/null\n+++ b/pkg/m.py\n@@ -0,0 +1,2 @@\n+one\n+two\n"
    assert run(create, None) == {"pkg/m.py": b"one\ntwo\n"}
    with pytest.raises(PatchError, match="exists already"):
        run(create)
    delete = "--- a/pkg/m.py\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-one\n-two\n"
    assert run(delete, b"one\ntwo\n") == {}
    with pytest.raises(PatchError, match="does not exist"):
        run(delete, None)
    with pytest.raises(PatchError, match="has other lines too"):
        run(delete, b"one\ntwo\nthree\nfour\n")


def test_a_missing_newline_at_the_end_is_kept_and_can_be_added():
    text = "--- a/pkg/m.py\n+++ b/pkg/m.py\n@@ -1,2 +1,2 @@\n one\n-two\n\\ No newline at end of file\n+two\n"
    assert run(text, b"one\ntwo")["pkg/m.py"] == b"one\ntwo\n"
    with pytest.raises(PatchError, match="does not apply"):
        run(text, b"one\ntwo\n")
    text = "--- a/pkg/m.py\n+++ b/pkg/m.py\n@@ -1,2 +1,2 @@\n-one\n+1\n two\n\\ No newline at end of file\n"
    assert run(text, b"one\ntwo")["pkg/m.py"] == b"1\ntwo"


def test_lines_split_at_newlines_only():
    # bytes.splitlines() would split at a lone carriage return, and the line numbers would be off by one
    assert split_lines(b"a\rb\nc\x0cd\n\ne") == [b"a\rb\n", b"c\x0cd\n", b"\n", b"e"]


@pytest.mark.parametrize(
    ("change", "line", "problem"),
    [
        (("a/pkg/m.py\n+++", "a/pkg/../m.py\n+++"), 5, "does not name a source file"),
        (("--- a/pkg/m.py", "--- a//pkg/m.py"), 5, "is not a/pkg/"),
        (("--- a/pkg/m.py", "--- a/other/m.py"), 5, "is not a/pkg/"),
        (("--- a/pkg/m.py", "--- /etc/m.py"), 5, "is not a/pkg/"),
        (("+++ b/pkg/m.py", "+++ b/pkg/n.py"), 5, "renames"),
        (("+++ b/pkg/m.py", "+++ b/pkg/__pycache__/m.py"), 6, "does not name a source file"),
        (("index 123..456 100644", "old mode 100644"), 4, "expected '---"),
        (("index 123..456 100644", "GIT binary patch"), 4, "expected '---"),
        (("@@ -7,7 +7,8 @@", "@@ -7,8 +7,9 @@"), 7, "ends inside this hunk"),
        (("@@ -7,7 +7,8 @@", "@@ -7,6 +7,7 @@"), 16, "expected '---"),
        (("@@ -7,7 +7,8 @@", "@@ -7,7 +9,8 @@"), 7, "states new line 9"),
        (("@@ -7,7", "@@ -x,7"), 7, "not a hunk header"),
        ((" line 9\n", "\n"), 10, "stripped the blank"),
        ((" line 9\n", "line 9\n"), 10, "inside a hunk"),
        ((" line 13\n", " line 13\n-- \n2.43.0\n"), 17, "text after a diff"),
        ((" line 13\n", " line 13"), 16, "does not end with a newline"),
        (("+line ten\n+and a half\n", " line 10\n line 10\n"), None, "a.patch, line"),
    ],
)
def test_a_malformed_patch_is_refused_by_name_and_line(change, line, problem):
    text = GOOD.replace(*change, 1)
    assert text != GOOD
    with pytest.raises(PatchError) as caught:
        run(text)
    assert problem in str(caught.value)
    assert line is None or str(caught.value).startswith(f"a.patch, line {line}: ")


def test_overlapping_hunks_and_a_file_patched_twice_are_refused():
    hunk = GOOD[GOOD.index("@@") :]
    with pytest.raises(PatchError, match="overlaps"):
        run(GOOD + hunk)
    with pytest.raises(PatchError, match="patched twice"):
        run(GOOD + GOOD[GOOD.index("--- a/") :])


def test_a_patch_without_a_diff_is_refused():
    with pytest.raises(PatchError, match="no diff found"):
        run("Subject: x: y\n\nonly words\n")
