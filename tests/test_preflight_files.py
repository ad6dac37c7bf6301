"""What the preflight finds of checkpoints, data and the run directory: each fault alone, provoked."""

import json
from pathlib import Path

import pytest
import torch
from made_machine import model

from gptoss_rl.data.files import manifest_path
from gptoss_rl.doctor import OK, STOP, WARNING
from gptoss_rl.doctor.files import check_checkpoints, examine_data, examine_run_directory
from gptoss_rl.flags import resolve
from gptoss_rl.models.tiny_tokenizer import build_tokenizer
from gptoss_rl.prompts import HARMONY_MARKERS
from gptoss_rl.sync.local_engine import engine_arguments


def check(trainer: Path, engine: Path) -> list:
    return check_checkpoints(engine_arguments(pretrain=str(trainer), vllm_pretrain=str(engine)))


def only_stop(findings: list) -> str:
    """What the one finding that stops says; a remedy is named beside it, or in it."""
    (stop,) = [finding for finding in findings if finding.level == STOP]
    assert stop.remedy or "download it again" in stop.seen
    return stop.seen


def test_two_forms_of_one_model_pass(tmp_path: Path) -> None:
    good, quantised = model(tmp_path / "good"), model(tmp_path / "quantised", quantization_config={"quant_method": "mxfp4"})
    assert [f.level for f in check(good, quantised)] == [OK, OK]
    assert "1 tensors are equal" in check(good, quantised)[0].seen
    assert "is quantised" in only_stop(check(quantised, quantised))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"hidden_size": 96}, "differ in hidden_size"),
        ({"weights": {"model.norm.weight": torch.full((4,), 1.5)}}, "differ in model.norm.weight: not one base"),
        ({"weights": {"x": torch.ones(1)}}, "no tensor in common"),
        (
            {
                "weights": {
                    "model.norm.weight": torch.ones(4, dtype=torch.bfloat16),
                    "model.layers.0.self_attn.q_proj.weight": torch.ones(4, 4),
                }
            },
            "one of them is fine-tuned or merged",
        ),
    ],
)
def test_two_models_stop(other: dict, words: str, tmp_path: Path) -> None:
    assert words in only_stop(check(model(tmp_path / "good"), model(tmp_path / "other", **other)))


def test_another_tokenizer_is_a_warning_and_one_without_markers_stops(tmp_path: Path) -> None:
    good, text = model(tmp_path / "good"), model(tmp_path / "text", markers=False)
    finding = check(good, text)[0]
    assert (finding.level, "tokenizer.json differ" in finding.seen) == (WARNING, True)
    assert "several tokens" in only_stop(check(text, text))
    assert all(marker in only_stop(check(text, text)) for marker in HARMONY_MARKERS)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "is no model directory"),
        ("config.json", '{"hidden_size": 6', "config.json is cut off or damaged"),
        ("config.json", "[]", "config.json is cut off or damaged"),
        ("model.safetensors", None, "lacks model.safetensors"),
        ("model.safetensors", "cut", "is damaged"),
        (INDEX, '{"weight_map": {"a": "model-1.safetensors"}}', "lacks model-1.safetensors"),
        (INDEX, '{"weight_map": {}}', "holds no tensor"),
        (INDEX, '{"weight_map": {"a"', "index.json is cut off or damaged"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", '{"version": "1.0", "added', "tokenizer.json is cut off or damaged"),
    ],
)
def test_a_missing_or_damaged_file_of_a_model_stops(name: str, content: str | None, words: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    assert words in only_stop(check(folder, folder))


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    found = check(tmp_path / "trainer", tmp_path / "engine")
    assert [(f.level, Path(f.seen.split()[0]).name) for f in found] == [(STOP, "trainer"), (STOP, "engine")]
    args = engine_arguments(prompt_data=str(tmp_path), eval_dataset=str(tmp_path / "no.jsonl"))
    found, *counts = examine_data(args)
    assert [f.seen for f in found] == [
        f"--prompt_data {tmp_path} is a folder, not a file", f"--eval_dataset {tmp_path / 'no.jsonl'} does not exist"
    ]  # fmt: skip
    assert ({f.level for f in found}, counts) == ({STOP}, [0, 0])
    assert examine_data(engine_arguments())[0][0].level == STOP  # no --prompt_data at all


def prompts(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"input": text, "label": label}) + "\n" for text, label in rows))
    return str(path)


def test_bad_data_stops(tmp_path: Path) -> None:
    good = prompts(tmp_path / "good.jsonl", [("What is 1 + 1?", "2"), ("What is 1 + 2?", "3")])
    listed = prompts(tmp_path / "list.jsonl", [("What are the roots?", "1,2")])
    held_out = prompts(tmp_path / "held_out.jsonl", [("What is 2 + 2?", "4")])
    changed = prompts(tmp_path / "changed.jsonl", [("What is 3 + 2?", "5")])
    manifest_path(Path(changed)).write_text(json.dumps({"sha256": "0" * 64, "rows": 9}))

    def check(train: str, evaluation: str | None):
        args = engine_arguments(prompt_data=train, eval_dataset=evaluation, label_key="label", input_key="input")
        (finding,), *counts = examine_data(args)
        return finding, tuple(counts)

    assert check(good, held_out)[1] == (2, 1)
    for train, evaluation, words in (
        (str(tmp_path / "no.jsonl"), None, "no.jsonl does not exist"),
        (good, str(tmp_path / "no.jsonl"), "no.jsonl does not exist"),
        (listed, None, "labels must be integers"),
        (good, listed, "labels must be integers"),
        (good, good, "are in the evaluation set"),
        (changed, None, "changed.jsonl"),
    ):
        finding, counts = check(train, evaluation)
        assert (finding.level, counts) == (STOP, (0, 0))
        assert words in finding.seen
        assert "see the message" not in finding.remedy


def test_a_prompt_that_is_too_long_stops_before_the_run_does(tiny_tokenizer: Path, tmp_path: Path) -> None:
    train = prompts(tmp_path / "train.jsonl", [("1+1", "2"), ("1+2", "3"), ("1+1+1+1+1+1+1", "7")])
    names = {"prompt_data": train, "label_key": "label", "pretrain": str(tiny_tokenizer)}

    def lengths(**changes):
        findings, *_ = examine_data(engine_arguments(**{**names, **changes}))
        return next(f for f in findings if f.check == "prompt lengths")

    longest = int(lengths().seen.split(" has ")[1].split()[0])
    assert (lengths().level, lengths(prompt_max_len=longest).level) == (OK, OK)
    finding = lengths(prompt_max_len=longest - 1)
    assert (finding.level, "; 1 are longer" in finding.seen) == (STOP, True)
    assert finding.remedy.startswith(f"--prompt_max_len {longest},")
    assert "; 3 are longer" in lengths(prompt_max_len=8).seen
    # The first two alone would be trained on.
    assert lengths(prompt_max_len=longest - 1, max_samples=2).level == OK
    # What is evaluated is rendered and limited alike.
    assert lengths(prompt_max_len=longest - 1, max_samples=2, eval_dataset=held_out(tmp_path)).level == STOP


def held_out(folder: Path) -> str:
    return prompts(folder / "eval.jsonl", [("2+2+2+2+2+2+2", "14")])


@pytest.fixture
def tiny_tokenizer(tmp_path: Path) -> Path:
    build_tokenizer(4096).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_run_directory_is_looked_at(tmp_path: Path) -> None:
    train = prompts(tmp_path / "train.jsonl", [("1+1", "2")])

    def check(**changes):
        return examine_run_directory(resolve(engine_arguments(run_dir=str(tmp_path / "run"), prompt_data=train, **changes)))

    assert [f.level for f in check()] == [OK]
    assert "holds no checkpoint to resume from" in check(load_checkpoint=True)[0].seen
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert "already holds a run" in check()[0].seen
    assert [f.level for f in (*check(), *check(load_checkpoint=True))] == [STOP, STOP]
