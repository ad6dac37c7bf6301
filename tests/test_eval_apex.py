"""Answers that need not be integers: two graders, of which the exact one counts wherever it has an opinion."""

import json
from pathlib import Path

import pytest

import eval_apex
from gptoss_rl.evaluation import EvaluationError


def row(label: str, answer: str | None, finish_reason: str = "stop") -> dict:
    return {"id": "p", "label": label, "answer": answer, "finish_reason": finish_reason}


@pytest.mark.parametrize(
    ("label", "answer", "correct", "disagree"),
    [
        ("12", "12", True, False),
        ("12", None, False, False),
        ("5", "2+3", False, True),  # math-verify computes the sum, the exact grader does not
        (r"\frac{1}{2}", "0.5", True, False),
        (r"\frac{1}{2}", None, False, False),
        (r"\frac{1}{3}", "0.33333333", False, True),  # math-verify compares six digits
        (r"2\sqrt{3}", r"\sqrt{12}", True, False),
        (r"2\sqrt{3}", "4", False, False),
    ],
)
def test_the_exact_grader_counts_where_it_can_read_and_disagreement_is_logged(
    label: str, answer: str | None, correct: bool, disagree: bool
) -> None:
    (graded,), disagreements = eval_apex.grade_all([row(label, answer)])
    assert graded["correct"] is correct
    assert bool(disagreements) is disagree


@pytest.mark.parametrize("label", ["12", r"2\sqrt{3}"])
def test_a_response_that_was_cut_off_is_wrong(label: str) -> None:
    (graded,), _ = eval_apex.grade_all([row(label, label, "length")])
    assert (graded["correct"], graded["reward"]) == (False, 0.0)


def test_the_integer_0_is_a_label(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"input": "What?", "label": 0}) + "\n")
    assert [problem.label for problem in eval_apex.read_set(path)] == ["0"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"input": "What?", "label": "not parseable \\foo{"}], "row 1: neither grader can read the label"),
        ([{"input": ["a"], "label": "3"}], "row 1: needs input and label"),
        ([{"input": "What?", "label": ["3"]}], "row 1: label .* is neither text nor an integer"),
        ([{"input": "What?", "label": ""}], "row 1: needs input and label"),
        ([{"input": "What?", "label": "3"}, {"input": " What?", "label": "3"}], "twice"),
    ],
)
def test_a_set_that_cannot_be_graded_is_refused_with_its_row(tmp_path: Path, rows: list, message: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(EvaluationError, match=message):
        eval_apex.read_set(path)
