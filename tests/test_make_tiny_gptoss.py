"""The tiny model, its tokenizer and its problems: complete, reproducible, and without leaks between splits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from gptoss_rl.models.tiny_task import guessing_response, split_problems, working_response
from gptoss_rl.prompts import HARMONY_MARKERS, render_prompt
from reward_func_em import grade

ROOT = Path(__file__).resolve().parent.parent


def make(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """Build without the warm-up, which takes minutes; the warmed-up model is trained in test_train_cpu.py."""
    where = ["--output", folder / "model", "--data_dir", folder / "data", "--max_warmup_steps", "0"]
    command = [sys.executable, "make_tiny_gptoss.py", *where, *flags]
    return subprocess.run([str(w) for w in command], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    done = make(folder)
    assert done.returncode == 0, done.stderr
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_model_has_what_gpt_oss_has(made: Path) -> None:
    from safetensors import safe_open

    config = AutoConfig.from_pretrained(made / "model")
    assert config.model_type == "gpt_oss"
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.rope_scaling["rope_type"] == "yarn"
    assert config.attention_bias is True
    assert config.num_local_experts > config.num_experts_per_tok > 1
    with safe_open(made / "model" / "model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
        assert str(tensors.get_slice("lm_head.weight").get_dtype()) == "BF16"
    for part in ("self_attn.sinks", "self_attn.q_proj.bias", "mlp.experts.gate_up_proj", "mlp.router.weight"):
        assert f"model.layers.0.{part}" in names


def test_the_tokenizer_speaks_harmony_and_loses_nothing(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    for marker in HARMONY_MARKERS:
        assert len(tokenizer.encode(marker, add_special_tokens=False)) == 1
    for text in (render_prompt("What is 17 + 85?", "low"), "Ünïcode 漢字 \x00 123 \\boxed{-4}", " two  spaces\n"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert len(tokenizer.encode("0123456789", add_special_tokens=False)) == 10
    assert len(tokenizer.encode(render_prompt("What is 17 + 85?", "low"), add_special_tokens=False)) <= 40


def test_no_problem_crosses_the_splits() -> None:
    pairs = {name: {frozenset((s.first, s.second)) for s in items} for name, items in split_problems().items()}
    names = list(pairs)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert not pairs[first] & pairs[second]


def test_the_files_hold_enough_problems_with_right_labels(made: Path) -> None:
    train, evaluation = rows(made / "data" / "tiny_train.jsonl"), rows(made / "data" / "tiny_eval.jsonl")
    assert len(evaluation) >= 500
    assert len(train) >= 40 * 8
    assert not {r["input"] for r in train} & {r["input"] for r in evaluation}
    for row in train + evaluation:
        left, right = row["input"].removeprefix("What is ").removesuffix("?").split(" + ")
        assert int(row["label"]) == int(left) + int(right)


def test_the_two_habits_are_what_they_are_said_to_be() -> None:
    items = split_problems()["train"]
    assert all(grade(working_response(s), s.answer).correct for s in items)
    assert all(grade(guessing_response(s), s.answer).correct is (not s.carries) for s in items)


def test_what_an_interrupted_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    for name in (".model.7.partial", ".model.7.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    assert make(tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "data", "model"]


def test_a_second_call_finds_it_and_another_seed_makes_another(made: Path, tmp_path: Path) -> None:
    before = (made / "model" / "model.safetensors").stat().st_mtime_ns
    assert make(made).returncode == 0
    assert (made / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert make(tmp_path).returncode == 0
    assert make(tmp_path / "other", "--seed", "7").returncode == 0
    weights = [(p / "model" / "model.safetensors").read_bytes() for p in (made, tmp_path, tmp_path / "other")]
    assert weights[0] == weights[1] != weights[2]
    assert (made / "data" / "tiny_eval.jsonl").read_bytes() == (tmp_path / "data" / "tiny_eval.jsonl").read_bytes()
