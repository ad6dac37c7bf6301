"""Which texts are one problem, and which labels are one of several answers; whole rows are in gptoss_rl.data.numina_fixture."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from build_ood_1000 import answer_of
from gptoss_rl.data.normalise import normalise
from gptoss_rl.data.numina import answer_verdict, boxed_list, has
from gptoss_rl.data.numina_fixture import frame, make_rows

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Compute $\\dfrac{1}{2} + \\tfrac13$.", "Compute $\\frac{1}{2} + \\cfrac{1}{3}$."),
        ("Let $k \\leq 5$ and $k \\geqslant 1$, $k \\neq 2$.", "Let $k \\le 5$ and $k \\ge 1$, $k \\ne 2$."),
        ("Let k ≤ 5 and k ≠ 2.", "Let $k \\leq 5$ and $k \\neq 2$."),
        ("Solve x² + x¹⁰ = 3.", "Solve $x^2 + x^{10} = 3$."),
        ("Solve x<sup>2</sup> = 3.", "Solve $x^2 = 3$."),
        ("The city’s “old” tower", 'The city\'s "old" tower'),
        ("The city's ``old'' tower", 'The city\'s "old" tower'),
        ("pages 3–5, and 7 − 2", "pages 3-5, and 7 - 2"),
        ("It has 3 rows.<br/>How many are red?", "It has 3 rows. How many are red?"),
        ("$a_{\\textrm{max}}$ and $\\mathbb{R}$", "$a_{\\text{max}}$ and $R$"),
        ("In the square $A B C D$, $A B = a b^{2}$.", "In the square $ABCD$, $AB = ab^2$."),
        ("$1, 2, \\ldots, 9$ are 5\\% of it", "1, 2, ..., 9 are 5% of it"),
    ],
)
def test_one_problem_in_two_spellings_is_one(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Solve x² = 3.", "Solve $x2 = 3$."),
        ("Find $k \\leq 5$.", "Find $k \\geq 5$."),
        ("Compute $\\frac{1}{2}$.", "Compute $\\frac{2}{1}$."),
        ("Compute $\\frac{12}{5}$.", "Compute $\\frac{1}{25}$."),
        ("Find $AB + CD$.", "Find $AC + BD$."),
        ("Find $7 - 2$.", "Find $7 + 2$."),
        ("Find $a < b$.", "Find $a > b$."),
    ],
)
def test_other_problems_stay_apart(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


SEVERAL = "Find all possible values of $k$, separated by commas."


@pytest.mark.parametrize(
    ("problem", "solution", "boxes"),
    [
        (SEVERAL, "So $k$ is $\\boxed{3}$ or $\\boxed{5}$.", ["3", "5"]),
        (SEVERAL, "So $k$ is $\\boxed{\\frac{3}{2}}$ or $\\boxed{5}$.", ["\\frac{3}{2}", "5"]),
        (SEVERAL, "So $k = \\boxed{5}$, as $\\boxed{ 5 }$ shows.", []),
        (SEVERAL, "So $k = \\boxed{5}$.", []),
        (SEVERAL, "No box.", []),
        # The logarithm of the inner number is boxed on the way.
        ("Evaluate $\\log_2 (4^2)$.", "First $\\boxed{2}$, so $\\boxed{4}$.", []),
    ],
)
def test_boxes_are_a_list_where_several_answers_are_asked_for(problem: str, solution: str, boxes: list[str]) -> None:
    assert boxed_list(problem, solution) == boxes


def test_the_last_box_of_a_list_is_no_label() -> None:
    solution = "So $k$ is $\\boxed{3}$ or $\\boxed{5}$."
    assert answer_verdict("5", SEVERAL, solution) == (None, "label is one of a list")
    assert answer_of({"problem": SEVERAL, "solution": solution, "answer": "5"}) == "3, 5"
    assert answer_of({"problem": SEVERAL, "solution": "So $k$ is $\\boxed{5}$."}) == "5"


def test_a_percentage_is_a_label_only_where_the_problem_speaks_of_percent() -> None:
    assert answer_verdict("25\\%", "What is the probability?", "")[1] == "percentage that is not asked for"
    assert answer_verdict("25\\%", "How many per cent is it?", "") == (25, None)


# Rust's Unicode word boundaries are slow; those of ASCII must not touch an escaped backslash before a b.
def test_patterns_keep_their_meaning_for_the_fast_engine() -> None:
    texts = pl.DataFrame({"t": ["\\boxed{3}", "größer or", "a word"]})
    assert texts.select(has(pl.col("t"), r"\\boxed"))["t"].to_list() == [True, False, False]
    assert texts.select(has(pl.col("t"), r"\bor\b"))["t"].to_list() == [False, True, False]
    assert texts.select(has(pl.col("t"), r"\ba \w+$"))["t"].to_list() == [False, False, True]


def test_a_sample_of_verdicts_is_printed_and_is_the_same_again(tmp_path: Path) -> None:
    frame([row for _, row in make_rows(20)]).write_parquet(tmp_path / "numina.parquet")
    command = [sys.executable, ROOT / "benchmarks/sample_verdicts.py", "--input", tmp_path / "numina.parquet", "--size", "3"]
    first, again = (subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == again
    assert first.count("KEPT") == first.count("REJECTED") == 3
