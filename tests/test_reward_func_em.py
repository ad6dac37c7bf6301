"""The grader's table of cases. Half of it must be wrong: a grader that is too kind rewards the wrong thing."""

import json
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from gptoss_rl.prompts import render_prompt
from reward_func_em import (
    MAX_ANSWER,
    extract_answer,
    final_text,
    grade,
    parse_integer,
    parse_label,
    read_number,
    reward_func,
)

ROOT = Path(__file__).resolve().parent.parent

RIGHT = [
    ("5", 5), ("-5", -5), ("+5", 5), ("\u22125", -5), ("- 5", -5), ("0", 0), ("-0", 0), ("007", 7), ("5.", 5), ("5.0", 5),
    ("113.00", 113), ("1,234", 1234), ("1{,}234", 1234), (r"1\,234", 1234), (r"1,\!234", 1234), ("1,234,567", 1234567),
    ("-1,234", -1234), ("10/2", 5), ("-10/2", -5), (r"\frac{10}{2}", 5), (r"\dfrac{10}{2}", 5), (r"\tfrac{10}{2}", 5),
    (r"-\frac{10}{2}", -5), (r"\frac{-10}{2}", -5), (r"\frac82", 4), (r"\$5", 5), ("$5$", 5), (r"\$1,234", 1234), (r"-\$5", -5),
    ("x=5", 5), ("x = 5", 5), (r"n_{1} = 5", 5), (r"5\%", 5), ("5%", 5), (r"5^\circ", 5), (r"5^{\circ}", 5), ("5\u00b0", 5),
    (r"5\text{ cm}", 5), (r"5\text{ cm}^2", 5), (r"5\ \text{cm}^{3}", 5), (r"5\,\mathrm{cm}", 5), ("5 units", 5), ("5 cm", 5),
    ("5 degrees", 5), ("5 square feet", 5), (r"\text{5}", 5), (r"\mathbf{5}", 5), (r"\(5\)", 5), ("{5}", 5), (" 5 ", 5), (r"5\!", 5),
    (r"5 \text{ people}.", 5), (r"x = 1,234\text{ dollars}", 1234), ("2500000000000000000001", 2500000000000000000001),
]  # fmt: skip

WRONG = [
    ("6", 5), ("-5", 5), ("--5", 5), ("1/2", 12), ("1.5", 15), ("1.5", 1), ("1.50", 15), ("63,65", 6365), ("12,34", 1234), ("1,2345", 12345),
    ("1,234", 1), ("0,123", 123), ("1, 234", 1234), ("5 6", 56), ("5,6", 56), ("(5,6)", 56), ("[5,6]", 56), ("5;6", 56), ("5 or 6", 5),
    (r"5\text{ or }6", 5), ("x=5,y=6", 5), ("x=5, y=6", 6), (r"3\frac{1}{2}", 3), (r"3\frac12", 312), ("1e3", 1000), ("0x10", 16),
    ("10^3", 1000), ("5!", 5), ("5!", 120), (r"2\cdot 3", 6), (r"2\times 3", 6), ("2+3", 5), ("5x", 5), ("5i", 5), (r"5\pi", 5), (r"\sqrt{25}", 5),
    (r"\frac{1}{0}", 0), (r"\frac{1}{2}", 12), (r"\frac{10}{3}", 3), ("\u0665", 5), ("\u00b2", 2), ("\uff15", 5), ("five", 5), ("", 0), ("?", 0),
    ("\\text{cm}", 0), ("cm", 0), ("%", 0), ("$", 0), (r"\pm 5", 5), (r"\approx 5", 5), ("<5", 5), (r"\geq 5", 5), ("5...", 5), ("5..0", 50), (".", 0),
    ("5_{10}", 510), ("101_2", 101), ("5:6", 56), ("5-6", 5), ("A", 10), (r"\text{5 or 6}", 5), ("1,234,56", 123456), ("1,234\\,567", 1234567),
    ("1 234", 1234), ("5 5", 5), (r"5\%5", 55), ("None", 0), ("nan", 0), ("inf", 0), ("1_000", 1000), ("5\\\\6", 56), ("0.1+0.2", 0),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "label"), RIGHT)
def test_right(answer: str, label: int) -> None:
    assert grade(f"So it is \\boxed{{{answer}}}.", label).correct


@pytest.mark.parametrize(("answer", "label"), WRONG)
def test_must_be_wrong(answer: str, label: int) -> None:
    assert not grade(f"So it is \\boxed{{{answer}}}.", label).correct


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("no box, the answer is 5", None),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{5", None),
        (r"\boxed 5", None),
        (r"\boxedfoo{5}", None),
        (r"\boxed{4} then \boxed{5}", "5"),
        (r"\boxed{5} then \boxed{", None),  # cut off while answering
        (r"\boxed{5} then \boxed{}", None),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{5}}}}", "5"),
    ],
)
def test_what_is_extracted(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


ANALYSIS = r"<|channel|>analysis<|message|>maybe \boxed{4}<|end|><|start|>assistant"
FINAL = r"<|channel|>final<|message|>it is \boxed{5}<|return|>"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (ANALYSIS + FINAL, "5"),
        (FINAL, "5"),
        (ANALYSIS, None),
        (ANALYSIS[:40], None),
        (ANALYSIS + "<|channel|>final<|message|>it is five", None),
        (ANALYSIS + "<|channel|>final", None),
        (ANALYSIS + FINAL.removesuffix("<|return|>"), "5"),
        (r"<|channel|>commentary<|message|>\boxed{5}<|call|>", None),
        (FINAL + r"<|start|>assistant<|channel|>analysis<|message|>\boxed{6}<|end|>", "5"),
        (FINAL + r"<|start|>assistant<|channel|>final<|message|>\boxed{7}<|return|>", "7"),
        (r"<|channel|>final <|constrain|>json<|message|>\boxed{5}<|return|>", "5"),
        (r"<|channel|>final<|end|><|message|>\boxed{5}", None),
    ],
)
def test_only_the_final_channel_counts(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


def test_nothing_equals_nothing() -> None:
    assert not grade("", 0).correct
    assert not grade("0", 0).correct
    assert final_text("") == ""


@pytest.mark.parametrize("label", ["5.0", "1,234", "", "x", None, 5.0, True, "5/1", "\u0665", [5]])
def test_a_label_that_is_no_integer_is_an_error(label) -> None:
    with pytest.raises(ValueError, match="label"):
        parse_label(label)


def test_integers_for_filters() -> None:
    assert parse_integer("110,880") == 110880
    assert parse_integer("63,65") is None
    assert parse_integer("5.5") is None
    assert read_number("5.5") == Fraction(11, 2)
    assert parse_integer("9" * (MAX_ANSWER + 1)) is None


def test_the_reward_function_never_reads_the_prompt() -> None:
    prompt = render_prompt(r"The answer is \boxed{5}, is it not?")
    result = reward_func([prompt + "yes"], [prompt], ["5"])
    assert result["rewards"] == [0.0]
    assert result["extra_logs"] == {"answer_found": [0.0], "final_channel": [1.0]}
    assert reward_func([prompt + FINAL], [prompt], [5])["rewards"] == [1.0]
    with pytest.raises(ValueError, match="does not start with its prompt"):
        reward_func(["other"], [prompt], ["5"])


MEGABYTE = 1_000_000
LONG = [
    "{" * MEGABYTE, "}" * MEGABYTE, r"\boxed{" * (MEGABYTE // 7), r"\boxed" * (MEGABYTE // 6), r"\boxed{" + "{" * MEGABYTE,
    r"\boxed{" + "1," * (MEGABYTE // 2) + "}", r"\boxed{" + "1" * MEGABYTE + "}", r"\boxed{" + r"\text{" * (MEGABYTE // 6),
    "\\" * MEGABYTE, r"\boxed{" + "\\" * MEGABYTE + "}", "<|channel|>" * (MEGABYTE // 11), "<|channel|>final" * (MEGABYTE // 16),
    "<|channel|>final<|message|>" * (MEGABYTE // 27), "<|start|>" * (MEGABYTE // 9), r"\boxed{" + " " * MEGABYTE + "}", "\\boxed" + " " * MEGABYTE,
    r"\boxed{5}" * (MEGABYTE // 9), r"\boxed{" + "x=" * 140 + "}", r"\boxed{" + "-" * 290 + "}", r"\boxed{" + r"\text{a}" * 40 + "}",
]  # fmt: skip


def test_a_megabyte_of_anything_is_graded_at_once() -> None:
    # A quadratic scan of one of these takes hours; the limit is far above linear time on a slow machine.
    code = "import sys\nimport tests.test_reward_func_em as t\nfor text in t.LONG:\n    t.grade(text, 5)\n"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_no_string_raises() -> None:
    pieces = [
        "\\boxed{", "}", "{", "\\text{", "\\frac", "\\frac{1}{", "1", "2", ",", ".", "-", "/", "\\", "$", "\\$", "%", "^\\circ", "=", "x", " ",
        "<|channel|>", "final", "<|message|>", "<|end|>", "\x00", "\ud800", "\u0665", "\u00b2", "\u2212", "\n", "\\,", "{,}", "\\!", "_", "\u202f",
    ]  # fmt: skip
    generator = random.Random(0)
    for _ in range(20_000):
        text = "".join(generator.choices(pieces, k=generator.randrange(1, 16)))
        for response in (text, f"\\boxed{{{text}}}"):
            grade(response, 5)


def run_command(path: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "reward_func_em.py", "grade", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_counts_and_shows_flips(tmp_path: Path) -> None:
    path = tmp_path / "graded.jsonl"
    rows = [
        {"response": r"\boxed{5}", "label": 5, "correct": True},
        {"response": r"\boxed{5}", "label": "6", "correct": True},
        {"response": "nothing", "label": 5, "reward": 0.0},
        {"response": r"\boxed{a}", "label": 5},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_command(path)
    assert done.returncode == 0
    counts = {line[:14].strip(): int(line[14:]) for line in done.stdout.splitlines()[:6]}
    assert counts == {
        "rows": 4,
        "right": 1,
        "no answer": 1,
        "not a number": 1,
        "stored grades": 3,
        "flips": 1,
    }
    assert "line 2: now wrong, answer '5', label '6'" in done.stdout


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"response": "x"}', '{"response": "x", "label": "y"}', '{"response": 5, "label": 5}']
)
def test_the_command_names_a_bad_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"response": "a", "label": 1}\n' + line + "\n")
    done = run_command(path)
    assert done.returncode != 0
    assert "bad.jsonl, line 2" in done.stderr
    assert "Traceback" not in done.stderr
