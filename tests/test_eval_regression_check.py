"""In-training against post-hoc: what counts as a difference, and what the engine's nondeterminism excuses."""

import pytest

from eval_regression_check import by_problem, describe
from gptoss_rl.evaluation import Evaluation, EvaluationError


def rows(**changed: dict) -> dict[str, dict]:
    """Four problems, answered 7 and right, but for what is changed of them."""
    made = {}
    for key in "abcd":
        row = {
            "id": key,
            "label": "7",
            "response": r"\boxed{7}",
            "answer": "7",
            "correct": True,
            "tokens": 3,
            "finish_reason": "stop",
        }
        made[key] = {**row, **changed.get(key, {})}
    return made


def answering(text: str) -> dict:
    return {"response": rf"\boxed{{{text}}}", "answer": text, "correct": text == "7"}


def test_equal_evaluations_agree() -> None:
    said, lines = describe(rows(), (rows(), rows()), 0)
    assert lines == []
    assert "4 problems: 4 responses equal to the token; verdicts differ on 0" in said[0]


@pytest.mark.parametrize("change", [answering("8"), {"label": "07"}])
def test_a_difference_counts(change: dict) -> None:
    _, lines = describe(rows(a=change), (rows(), rows()), 0)
    assert [line[:2] for line in lines if "post hoc" in line] == ["a:"]


def test_another_wrong_answer_is_a_difference_too() -> None:
    _, lines = describe(rows(a=answering("8")), (rows(a=answering("9")), rows(a=answering("9"))), 0)
    assert len(lines) == 1


def test_a_problem_that_flips_by_itself_is_left_out_and_excuses_no_other() -> None:
    flipping = (rows(a=answering("8")), rows())
    assert describe(rows(), flipping, 0)[1] == []
    _, lines = describe(rows(b=answering("9")), flipping, 0)
    assert [line[:2] for line in lines] == ["b:"]
    assert describe(rows(b=answering("9")), flipping, 1)[1] == []


def test_a_stored_verdict_that_is_not_the_graders_fails_whatever_is_tolerated() -> None:
    for forged in ({"correct": False}, {"answer": "8"}, {"response": r"\boxed{8}"}, {"finish_reason": "length"}):
        _, lines = describe(rows(c=forged), (rows(c=forged), rows(c=forged)), 4)
        assert [line[:2] for line in lines] == ["c:"], forged
    cut_off = {"finish_reason": "length", "correct": False}
    assert describe(rows(c=cut_off), (rows(c=cut_off), rows(c=cut_off)), 0)[1] == []


def test_responses_that_differ_are_named_though_the_verdict_is_the_same() -> None:
    for change in ({"response": r"so \boxed{7}"}, {"tokens": 4}):
        said, lines = describe(rows(d=change), (rows(), rows()), 0)
        assert lines == []
        assert "3 responses equal to the token" in said[0]
        assert said[-1] == "responses differ on d"


def test_a_problem_that_stands_twice_is_refused(tmp_path) -> None:
    doubled = [*rows().values(), rows()["a"]]
    with pytest.raises(EvaluationError, match="1 problems stand there twice"):
        by_problem(Evaluation(tmp_path, {}, doubled, None))
