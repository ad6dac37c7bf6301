"""Several models on several sets: named, found possible, and not picked from in silence."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import eval_posthoc
from gptoss_rl.evaluation import Decoding, EvaluationError, header_path, load_evaluation, summarise
from gptoss_rl.run_files import write_json_atomically
from gptoss_rl.stats import compare, conclusion, corrected

GREEDY = Decoding.of(0.0, 16, 1, "low")


def arguments(*words: str):
    return eval_posthoc.parse_arguments([*words, "--eval_set", "x.jsonl"])


def evaluated(folder: Path, name: str, right: int, count: int = 200, decoding: Decoding = GREEDY, **fields) -> Path:
    """Records of a model that solves the first `right` problems."""
    rows = [{"id": f"p{i:03d}", "sample": 0, "response": "x", "answer": "1", "value": "1", "label": "1", "correct": i < right,
             "tokens": 3, "finish_reason": "stop"} for i in range(count)]  # fmt: skip
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    header = {"model": name, "n": count, "problems": "p", "decoding": asdict(decoding), **fields}
    write_json_atomically(header_path(path), header)
    return path


def test_what_is_evaluated_is_named() -> None:
    served = eval_posthoc.models(arguments("--model_path", "m/base", "--adapter", "rl=runs/a/adapter", "--with_base"))
    assert [(s.name, str(s.model), s.adapter and str(s.adapter)) for s in served] == [
        ("base", "m/base", None),
        ("rl", "m/base", "runs/a/adapter"),
    ]
    for words, message in (
        (["--adapter", "a=b"], "needs --model_path"),
        ([], "name a model"),
        (["--model", "=x"], "neither NAME=DIR nor DIR"),
        (["--model", "a="], "neither NAME=DIR nor DIR"),
        (["--model", "m/x", "--model", "n/x"], "two models have one name"),
    ):
        with pytest.raises(EvaluationError, match=message):
            eval_posthoc.models(arguments(*words))


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("rl=runs/lr=1e-5/adapter", "rl", "runs/lr=1e-5/adapter"),
        ("runs/lr=1e-5/adapter", "adapter", "runs/lr=1e-5/adapter"),
        ("models/base", "base", "models/base"),
        ("models/base/.", "base", "models/base/."),
    ],
)
def test_a_name_ends_at_the_first_equals_sign(text: str, name: str, path: str) -> None:
    assert eval_posthoc.named(text) == (name, Path(path))


def test_a_linked_directory_keeps_the_name_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert eval_posthoc.named(str(tmp_path / "link"))[0] == "link"
    assert eval_posthoc.models(arguments("--model_path", str(tmp_path / "link")))[0].name == "link"


def test_a_model_path_is_a_path_whatever_is_in_it() -> None:
    (served,) = eval_posthoc.models(arguments("--model_path", "lr=1e-5"))
    assert (served.name, served.model) == ("lr=1e-5", Path("lr=1e-5"))


def test_picking_a_checkpoint_on_the_test_set_is_refused_unless_said(tmp_path: Path) -> None:
    base = {"model": "m", "base_fingerprint": "2-b"}
    headers = [base, *({**base, "adapter_digest": name} for name in "xy")]
    with pytest.raises(EvaluationError, match="2 checkpoints on s invite.*--allow-selection-on-test"):
        eval_posthoc.check_selection("s", headers, [], allowed=False)
    eval_posthoc.check_selection("s", headers, [], allowed=True)
    eval_posthoc.check_selection("s", headers[:2], [], allowed=False)
    # One after the other is the same picking.
    earlier = evaluated(tmp_path, "y", 5, **headers[2])
    with pytest.raises(EvaluationError, match=r"2 checkpoints on s .with y, evaluated before."):
        eval_posthoc.check_selection("s", headers[:2], [earlier], allowed=False)


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        ([{"base_fingerprint": "b", "model": "mxfp4"}, {"base_fingerprint": "b", "model": "bf16"}], 0),
        ([{"base_fingerprint": "b", "model": "m"}, {"base_fingerprint": "c", "model": "n"}], 1),
        ([{"base_fingerprint": x, "model": x} for x in "bcd"], 2),
        ([{"base_fingerprint": "b", "adapter_digest": "a"}, {"base_fingerprint": "c", "merged_adapter": "a"}], 1),
        ([{"base_fingerprint": "b", "adapter_digest": "a"}, {"base_fingerprint": "c", "merged_adapter": "d"}], 2),
    ],
)
def test_a_checkpoint_in_two_forms_is_one(headers: list[dict], count: int) -> None:
    assert eval_posthoc.checkpoints(headers) == count


def test_the_best_of_several_is_corrected_in_figures_and_in_words(tmp_path: Path) -> None:
    files = [evaluated(tmp_path, name, right) for name, right in (("base", 100), ("a", 106), ("b", 106))]
    shares = [list(load_evaluation(path).shares.values()) for path in files]
    plain = [compare(shares[0], other) for other in shares[1:]]
    assert eval_posthoc.compare_all(files, selected=False) == plain
    both = eval_posthoc.compare_all(files, selected=True)
    assert both == corrected(plain)
    assert both[0].p_value == pytest.approx(2 * plain[0].p_value)
    # 6 gained, none lost: p is 0.031 alone and 0.063 as the better of two.
    assert "B is better than A" in conclusion(plain[1])
    assert "B is better than A" not in conclusion(both[1])
    # Given one by one, they are as many.
    assert eval_posthoc.compare_all(files[:2], selected=True, earlier=files[2:]) == both[:1]
    other = evaluated(tmp_path, "c", 3, decoding=Decoding.of(0.0, 99, 1, "low"))
    assert eval_posthoc.compare_all(files, selected=True, earlier=[other]) == both


def run_set(folder: Path, names: list[str], allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finished:
        def __init__(self, name: str):
            self.records, self.served = folder / f"{name}.jsonl", type("S", (), {"name": name})

    monkeypatch.setattr(eval_posthoc, "evaluate", lambda job: None)
    eval_posthoc.run_set(Path("set.jsonl"), [Finished(name) for name in names], allowed)


def test_the_table_says_what_was_selected_and_the_mark_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, right in (("base", 100), ("a", 106), ("b", 106)):
        evaluated(tmp_path, name, right, base_fingerprint="f", **({} if name == "base" else {"adapter_digest": name}))
    (tmp_path / "b.jsonl").rename(tmp_path / "hidden")
    run_set(tmp_path, ["base", "a"], True, monkeypatch)  # one checkpoint, whatever was allowed
    assert "SELECTED" not in capsys.readouterr().out
    (tmp_path / "hidden").rename(tmp_path / "b.jsonl")
    run_set(tmp_path, ["base", "a", "b"], True, monkeypatch)
    said = " ".join(capsys.readouterr().out.split())
    assert "SELECTED ON THIS SET (corrected p and intervals)" in said
    assert "b (B) against base (A): B is better" not in said
    for name in ("base", "a"):
        run_set(tmp_path, [name], False, monkeypatch)
        said = capsys.readouterr().out
        assert "SELECTED ON THIS SET" in said
        assert "corrected" not in said  # nothing is compared
        assert json.loads((tmp_path / f"{name}.summary.json").read_text())["selected_on_test"] is True


def test_small_sets_rank_nothing(tmp_path: Path) -> None:
    files = [evaluated(tmp_path, name, right, count=10) for name, right in (("base", 2), ("a", 8))]
    summaries = [summarise(path.stem, path, Path("s.jsonl")) for path in files]
    table = eval_posthoc.table("s", summaries, eval_posthoc.compare_all(files, False), "")
    assert list(table.columns[3].cells) == ["", "not ranked"]
