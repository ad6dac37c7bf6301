"""The one prompt: pinned, reversible, and safe against control tokens in data."""

import json
from pathlib import Path

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


# Rendered by openai-harmony (benchmarks/check_harmony.py --golden), which needs a vocabulary of 3.6 MB for it.
GOLDEN = json.loads((Path(__file__).parent / "harmony_prompts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['reasoning_effort']}-{g['tokens']}")
def test_the_prompt_is_what_openais_renderer_makes(golden: dict) -> None:
    assert render_prompt(golden["problem"], golden["reasoning_effort"]) == golden["text"]


def test_every_effort_is_among_the_golden_prompts() -> None:
    assert {g["reasoning_effort"] for g in GOLDEN} == set(REASONING_EFFORTS)
    assert len(GOLDEN) == 9


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['reasoning_effort']}-{g['tokens']}")
def test_the_tiny_tokenizer_renders_part_by_part_as_harmony_does(golden: dict) -> None:
    # Harmony encodes what stands between two markers by itself; nothing may merge across a marker.
    from gptoss_rl.models.tiny_tokenizer import build_tokenizer

    tokenizer = build_tokenizer(4096)
    markers = {marker: tokenizer.convert_tokens_to_ids(marker) for marker in HARMONY_MARKERS}
    parts, text = [], golden["text"]
    while text:
        at, marker = min(((text.find(m), m) for m in markers if m in text), default=(len(text), ""))
        parts += tokenizer.encode(text[:at], add_special_tokens=False) + ([markers[marker]] if marker else [])
        text = text[at + len(marker) :]
    assert tokenizer.encode(render_prompt(golden["problem"], golden["reasoning_effort"]), add_special_tokens=False) == parts
