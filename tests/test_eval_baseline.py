"""Which sets have something to teach, and links that cannot point at the wrong one."""

import json
from pathlib import Path

import pytest

import eval_baseline
from gptoss_rl.evaluation import EvaluationError


def prompt_file(path: Path, *texts: str, role: str | None = None) -> Path:
    path.write_text("".join(json.dumps({"input": text, "label": 0}) + "\n" for text in texts))
    if role:
        path.with_suffix(".meta.json").write_text(json.dumps({"sha256": "x", "rows": len(texts), "role": role}))
    return path


def test_the_learning_zone() -> None:
    rates = [0.0, 0.0, 0.125, 0.5, 1.0]
    assert eval_baseline.in_zone(rates) == 0.4
    assert eval_baseline.histogram(rates) == [2, 1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_links_are_replaced_and_point_at_their_files_through_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "deep" / "er")
    for name in ("a.jsonl", "b.jsonl"):
        target = prompt_file(tmp_path / name, name)
        eval_baseline.symlink(target, tmp_path / "linked" / "train_prompts.jsonl")
        assert (tmp_path / "deep" / "er" / "train_prompts.jsonl").read_text() == target.read_text()
    assert not (tmp_path / "linked" / "train_prompts.jsonl").readlink().is_absolute()


def test_links_that_cannot_be_made_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    train, other = prompt_file(tmp_path / "t.jsonl", "a", "b"), prompt_file(tmp_path / "o.jsonl", "c")
    sets = {"train_set": [train], "eval_set": [other]}
    eval_baseline.check_links(sets, tmp_path)
    mixed = prompt_file(tmp_path / "m.jsonl", "c", " a")
    for changed, folder, message in (
        ({**sets, "eval_set": []}, tmp_path, "needs --train_set.*and --eval_set"),
        ({**sets, "eval_set": [other, mixed]}, tmp_path, "t.jsonl holds 1 problems of .*m.jsonl"),
        (sets, tmp_path / "no", "there is no such folder"),
    ):
        with pytest.raises(EvaluationError, match=message):
            eval_baseline.check_links(changed, folder)
    (tmp_path / "train_prompts.jsonl").symlink_to(train)
    with pytest.raises(EvaluationError, match="is itself a candidate"):
        eval_baseline.check_links({**sets, "train_set": [tmp_path / "train_prompts.jsonl"]}, tmp_path)
    (tmp_path / "eval_prompts.jsonl").write_text("mine")  # the second of the two links
    with pytest.raises(EvaluationError, match="is a file, not a link"):
        eval_baseline.check_links(sets, tmp_path)


@pytest.mark.parametrize(("flag", "role"), [("train_set", "evaluation"), ("train_set", "math45_eval"), ("eval_set", "train")])
def test_a_set_is_not_named_for_what_it_is_not_for(tmp_path: Path, flag: str, role: str) -> None:
    path = prompt_file(tmp_path / "s.jsonl", "a", role=role)
    with pytest.raises(EvaluationError, match=rf"--{flag} .*its role is {role}"):
        eval_baseline.check_roles({flag: [path]})
    other = {"train_set": "eval_set", "eval_set": "train_set"}[flag]
    eval_baseline.check_roles({other: [path]})


def test_the_best_set_of_each_kind_is_linked_and_the_number_rated_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = {name: prompt_file(tmp_path / f"{name}.jsonl", name) for name in ("t1", "t2", "e1", "e2")}
    rates = {files["t1"]: [0.0, 0.0], files["t2"]: [0.5, 0.0], files["e1"]: [0.5, 0.5], files["e2"]: [1.0, 0.5]}
    sets = {"train_set": [files["t1"], files["t2"]], "eval_set": [files["e1"], files["e2"]]}
    eval_baseline.recommend(rates, sets, tmp_path)
    assert (tmp_path / "train_prompts.jsonl").resolve() == files["t2"]
    assert (tmp_path / "eval_prompts.jsonl").resolve() == files["e1"]
    assert "t2.jsonl (50.0% of the 2 problems that were rated" in capsys.readouterr().out


def test_the_flag_is_spelt_both_ways() -> None:
    for flag in ("--auto-symlink", "--auto_symlink"):
        assert eval_baseline.parse_arguments(["--model_path", "m", flag]).auto_symlink == Path("data")
