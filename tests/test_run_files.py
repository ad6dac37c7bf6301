"""Files of a run survive crashes, and the summary reads them."""

import json

import pytest

from gptoss_rl.metrics import METRICS, UPSTREAM_NAMES, check_registered, rename_upstream
from gptoss_rl.run.summary import SummaryError, closing_table, summarise
from gptoss_rl.run_files import JsonLines, drop_after_step, read_json_lines, write_text_atomically
from gptoss_rl.stats import StatsError, paired, wilson


def test_a_torn_last_line_is_passed_over_and_not_built_upon(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "rew')
    JsonLines(path).write({"step": 3})
    assert [record["step"] for record in read_json_lines(path)] == [1, 3]


@pytest.mark.parametrize("tail", ['{"step": 3, "rew', '{"step": 3', "x" * 200_000, ""])
def test_a_torn_tail_is_gone_when_the_file_is_taken_up(tmp_path, tail: str) -> None:
    # Left in the middle, it would be a broken line for every reader that trusts all but the last.
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1}\n{"step": 2}\n'
    path.write_text(whole + tail)
    JsonLines(path).write({"step": 3})
    assert path.read_text() == whole + '{"step": 3}\n'


def test_a_record_that_lacks_its_line_break_alone_is_kept(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    JsonLines(path).write({"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_missing_file_is_empty(tmp_path) -> None:
    assert list(read_json_lines(tmp_path / "none.jsonl")) == []


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3, 4)))
    assert drop_after_step(path, 2) == 2
    assert [record["step"] for record in read_json_lines(path)] == [1, 2]


def test_an_atomic_write_leaves_no_temporary_file(tmp_path) -> None:
    write_text_atomically(tmp_path / "a.txt", "one")
    write_text_atomically(tmp_path / "a.txt", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "two"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text_atomically(tmp_path / "folder", "three")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_a_metric_that_is_not_registered_is_refused() -> None:
    with pytest.raises(KeyError, match="reward/menu"):
        check_registered({"reward/mean": 1.0, "reward/menu": 1.0})
    with pytest.raises(KeyError):
        rename_upstream({"something_new": 1.0})


def test_upstream_names_point_into_the_registry() -> None:
    assert {name for name in UPSTREAM_NAMES.values() if name} <= set(METRICS)


def test_mcnemar_of_a_known_table() -> None:
    # 15 gained, 5 lost: two-sided exact binomial p, 2 * P(X <= 5 | n=20, 1/2) = 0.04139.
    before = {str(i): i < 5 for i in range(100)}
    after = {str(i): 5 <= i < 20 for i in range(100)}
    found = paired(before, after)
    assert (found.gained, found.lost) == (15, 5)
    assert found.p_value == pytest.approx(0.04139, abs=1e-5)


def test_two_evaluations_of_different_problems_are_not_compared() -> None:
    with pytest.raises(StatsError, match="1 problems"):
        paired({"a": True}, {"a": True, "b": False})


def test_the_wilson_interval_of_a_known_share() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=1e-4)


def test_a_run_without_a_step_has_no_summary(tmp_path) -> None:
    with pytest.raises(SummaryError, match="no finished step"):
        summarise(tmp_path)


def test_the_closing_table_of_a_small_run(tmp_path) -> None:
    metrics = JsonLines(tmp_path / "metrics.jsonl")
    for step, reward in ((1, 0.2), (2, 0.6)):
        metrics.write({"step": step, "reward/mean": reward, "time/step": 2.0, "parity/abs_diff_mean": 0.01})
    sync = JsonLines(tmp_path / "sync.jsonl")
    for step in (0, 1, 2):
        sync.write({"step": step, "seconds": {"total": 9.0 if step == 0 else 0.1}})
    evaluation = JsonLines(tmp_path / "eval.jsonl")
    for step, solved in ((0, 30), (2, 60)):
        for problem in range(100):
            evaluation.write({"step": step, "id": str(problem), "correct": problem < solved})
    summary = summarise(tmp_path)
    assert (summary["pass_at_1_before"], summary["pass_at_1_after"], summary["n"]) == (0.3, 0.6, 100)
    assert summary["p_value"] < 1e-6
    assert summary["sync_seconds"] == 0.1
    table = closing_table(summary)
    assert "30 gained, 0 lost" in table
    assert "60.0%" in table
