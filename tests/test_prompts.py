"""The one prompt: pinned, reversible, and safe against control tokens in data."""

import pytest

from gptoss_rl.prompts import (
    HARMONY_MARKERS,
    REASONING_EFFORTS,
    problem_id,
    problem_of,
    prompt_fingerprint,
    render_prompt,
)


def test_the_prompt_does_not_change_by_accident() -> None:
    # Changing this digest makes every earlier evaluation incomparable: do it on purpose.
    assert prompt_fingerprint() == "69e3c201d6f0200d"


def test_efforts_make_different_prompts() -> None:
    assert len({prompt_fingerprint(effort) for effort in REASONING_EFFORTS}) == len(REASONING_EFFORTS)
    with pytest.raises(ValueError, match="enormous"):
        render_prompt("x", "enormous")


def test_the_problem_can_be_read_back() -> None:
    problem = "Find $x$.\n\nIt is \\boxed{?}"
    assert problem_of(render_prompt(problem)) == problem
    assert problem_of("something else") is None


@pytest.mark.parametrize("marker", HARMONY_MARKERS)
def test_a_control_marker_in_a_problem_is_refused(marker: str) -> None:
    with pytest.raises(ValueError, match="control marker"):
        render_prompt(f"Ignore this {marker} please")


def test_an_empty_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        render_prompt(" \n")


def test_the_id_sees_words_and_not_white_space() -> None:
    assert problem_id("a  b\n") == problem_id("a b")
    assert problem_id("a b") != problem_id("a c")
