"""What can be wrong is found before an engine starts; an evaluation goes on only as what it was begun as."""

import json
import shutil
import types
from pathlib import Path

import pytest
from ray.exceptions import RayError

from gptoss_rl.evaluation import (
    Decoding,
    EvaluationError,
    Problem,
    Served,
    evaluate,
    header_path,
    prepare,
    read_problems,
    read_sets,
    running,
)
from gptoss_rl.models.random_model import random_adapter
from gptoss_rl.prompts import HARMONY_MARKERS
from gptoss_rl.run_files import read_json, read_json_lines
from gptoss_rl.training.checkpoints import save_adapter

PROBLEMS = [Problem(f"p{i}", f"What is {i}?", str(i)) for i in range(4)]
GREEDY = Decoding.of(0.0, 16, 1, "low")


class Engine:
    """Answers every request with one token, a few at a time."""

    def __init__(self, finish_reason: str = "stop"):
        self.reason, self.asked = finish_reason, []
        self.submit, self.collect = types.SimpleNamespace(remote=self.take), types.SimpleNamespace(remote=self.give)

    def take(self, requests: dict, sampling: dict) -> None:
        self.asked = list(requests)
        self.left = list(requests)

    def give(self, seconds: float) -> tuple[list, int]:
        now, self.left = self.left[:2], self.left[2:]
        return [{"key": key, "token_ids": [5], "finish_reason": self.reason} for key in now], len(self.left)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(running, "ray", types.SimpleNamespace(get=lambda value: value, kill=lambda engine: None))
    monkeypatch.setattr(running, "start", lambda *_: made)
    return made


@pytest.fixture
def model(gpt_oss_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(gpt_oss_folder, tmp_path / "model")


def job(model: Path, records: Path, problems: list[Problem] = PROBLEMS, decoding: Decoding = GREEDY, adapter=None, **more):
    return prepare(Served("m", model, adapter), problems, decoding, records, tp_size=1, seed=0, **more)


def test_an_evaluation_goes_on_where_it_stopped(model: Path, tmp_path: Path, engine: Engine) -> None:
    records = tmp_path / "out" / "m.jsonl"
    evaluate(job(model, records))
    whole = records.read_text()
    assert [row["id"] for row in read_json_lines(records)] == ["p0", "p1", "p2", "p3"]
    records.write_text("".join(whole.splitlines(keepends=True)[:2]) + whole.splitlines()[2][:30])
    evaluate(job(model, records))
    assert engine.asked == ["p2/0", "p3/0"]
    assert records.read_text() == whole  # the torn line is gone
    engine.asked = None
    evaluate(job(model, records))
    assert engine.asked is None
    evaluate(job(model, records, anew=True))
    assert len(engine.asked) == 4


def change_tokenizer(model: Path) -> None:
    value = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**value, "version": "1.0", "truncation": None}, indent=1))


def change_weights(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_weights, "model_weights"),
        (change_tokenizer, "tokenizer"),
        (lambda model: (model / "config.json").write_text((model / "config.json").read_text() + "\n"), "model_config"),
    ],
)
def test_a_replaced_model_does_not_get_the_old_ones_records(
    model: Path, tmp_path: Path, engine: Engine, change, named: str
) -> None:
    records = tmp_path / "m.jsonl"
    evaluate(job(model, records))
    change(model)
    with pytest.raises(EvaluationError, match=rf"begun with something else .*{named}: \w+ there, \w+ now"):
        job(model, records)
    evaluate(job(model, records, anew=True))


def test_other_adapters_decodings_problems_and_versions_do_not_continue_either(
    model: Path, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        save_adapter(random_adapter(model, rank=4, seed=seed), tmp_path / name)
    records = tmp_path / "m.jsonl"
    evaluate(job(model, records, adapter=tmp_path / "a"))
    job(model, records, adapter=tmp_path / "." / "a")
    for message, more in (
        ("decoding.max_tokens: 16 there, 99 now", {"decoding": Decoding.of(0.0, 99, 1, "low")}),
        ("problems: ", {"problems": [*PROBLEMS[:3], Problem("p3", "What is 3?", "4")]}),
        ("adapter_digest: ", {"adapter": tmp_path / "b"}),
        ("adapter: .*/a there, None now", {"adapter": None}),
    ):
        with pytest.raises(EvaluationError, match=message):
            job(model, records, **{"adapter": tmp_path / "a", **more})
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(tmp_path / "b", tmp_path / "a")
    with pytest.raises(EvaluationError, match="adapter_digest: "):
        job(model, records, adapter=tmp_path / "a")
    evaluate(job(model, records, anew=True))
    monkeypatch.setattr("gptoss_rl.evaluation.records.stack_versions", lambda: {"vllm": "other"})
    with pytest.raises(EvaluationError, match="stack.vllm: .* there, other now"):
        job(model, records)


def test_a_start_that_fails_begins_nothing(model: Path, tmp_path: Path, engine: Engine, monkeypatch) -> None:
    records = tmp_path / "m.jsonl"

    def broken(*_):
        raise EvaluationError("no card is free")

    monkeypatch.setattr(running, "start", broken)
    with pytest.raises(EvaluationError, match="no card"):
        evaluate(job(model, records))
    assert not header_path(records).exists()
    monkeypatch.setattr(running, "start", lambda *_: engine)
    evaluate(job(model, records, decoding=Decoding.of(0.0, 99, 1, "low")))
    assert read_json(header_path(records))["decoding"]["max_tokens"] == 99


def test_an_engine_that_dies_is_said_and_what_it_made_is_kept(
    model: Path, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(seconds: float):
        if len(engine.left) < 4:
            raise RayError("out of memory")
        return Engine.give(engine, seconds)

    engine.collect.remote = dies
    with pytest.raises(EvaluationError, match="the engine failed.*the same command goes on\nout of memory"):
        evaluate(job(model, tmp_path / "m.jsonl"))
    engine.collect.remote = engine.give
    evaluate(job(model, tmp_path / "m.jsonl"))
    assert engine.asked == ["p2/0", "p3/0"]

    def never_starts(*_):
        raise RayError("out of memory")

    monkeypatch.setattr(running, "start", never_starts)
    with pytest.raises(EvaluationError, match="the engine failed"):
        evaluate(job(model, tmp_path / "n.jsonl"))


def test_two_commands_do_not_write_one_file_and_doubled_rows_are_named(model: Path, tmp_path: Path, engine: Engine) -> None:
    records = tmp_path / "m.jsonl"
    with running.only_writer(records), pytest.raises(EvaluationError, match="is being written by another command"):
        evaluate(job(model, records))
    evaluate(job(model, records))
    records.write_text(records.read_text() + records.read_text().splitlines(keepends=True)[0])
    with pytest.raises(EvaluationError, match="holds 1 responses twice, first one to problem p0.*move it away"):
        evaluate(job(model, records))
    records.write_text(records.read_text())
    header_path(records).unlink()
    with pytest.raises(EvaluationError, match="nobody knows what it was made with"):
        job(model, records)


def test_a_response_that_was_cut_off_is_wrong_and_an_unreadable_label_gets_no_verdict() -> None:
    class Text:
        def decode(self, tokens, skip_special_tokens: bool) -> str:
            return r"<|channel|>final<|message|>\boxed{7}"

    def one(label: str, reason: str) -> dict:
        result = {"token_ids": [5], "finish_reason": reason}
        return running.record(Problem("p", "What?", label), 0, "prompt", result, Text())

    assert (one("7", "stop")["correct"], one("7", "length")["correct"], one("8", "stop")["correct"]) == (True, False, False)
    assert one("7", "length")["reward"] == 1.0  # as a training record has it
    row = one(r"\sqrt{2}", "stop")
    assert (row["answer"], row["label"]) == ("7", r"\sqrt{2}")
    assert not {"correct", "reward"} & row.keys()  # nothing that a comparison could take for a verdict


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "config.json").unlink(), "no config.json"),
        (lambda m: (m / "model.safetensors").unlink(), "lacks model.safetensors"),
        (lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:-9]), "is damaged"),
        (lambda m: (m / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda m: (m / "tokenizer.json").write_text("{"), "tokenizer.json is no JSON"),
        (lambda m: (m / "config.json").write_text('{"model_type": "nothing"}'), "transformers cannot read"),
    ],
)
def test_a_model_that_cannot_be_served_is_named_before_an_engine_starts(
    model: Path, tmp_path: Path, damage, message: str
) -> None:
    damage(model)
    with pytest.raises(EvaluationError, match=message):
        job(model, tmp_path / "m.jsonl")


def test_prompts_and_outputs_are_looked_at_before_an_engine_starts(model: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="nothing can be written to .*/file/set"):
        job(model, tmp_path / "file" / "set" / "m.jsonl")
    monkeypatch.setattr(running, "PROMPT_MAX", 0)
    with pytest.raises(EvaluationError, match="4 prompts have more than 0 tokens, first p0"):
        job(model, tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize("text", ["  ", "", *(f"hi {marker} 2" for marker in HARMONY_MARKERS[:2])])
def test_a_problem_that_cannot_be_a_prompt_is_refused_with_its_row(tmp_path: Path, text: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps({"input": one, "label": 1}) + "\n" for one in ("fine", text)))
    with pytest.raises(EvaluationError, match="set.jsonl, row 2: "):
        read_problems(path)


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "set.jsonl").write_text('{"input": "What?", "label": 1}\n')
    with pytest.raises(EvaluationError, match="a/set.jsonl and .*b/set.jsonl would be written to one folder"):
        read_sets([tmp_path / "a" / "set.jsonl", tmp_path / "b" / "set.jsonl"])
    assert len(read_sets([tmp_path / "a" / "set.jsonl"])) == 1
