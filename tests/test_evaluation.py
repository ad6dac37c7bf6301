"""Evaluations that can be compared: fixed denominators, the same problems and decoding, resumable to the same result."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from gptoss_rl.evaluation import (
    AdapterFiles,
    Decoding,
    EvaluationError,
    Problem,
    header_path,
    load_evaluation,
    read_problems,
    refuse_different,
    summarise,
)
from gptoss_rl.models.random_model import save_random_gpt_oss
from gptoss_rl.run_files import read_json_lines, write_json_atomically

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = [Problem(f"p{i}", f"What is {i}?", str(i)) for i in range(10)]
GREEDY = Decoding.of(0.0, 16, 1, "low")


def write_identity(records: Path, decoding: Decoding = GREEDY, problems: list[Problem] = PROBLEMS, **fields) -> None:
    """Beside records that no engine made, what an identity says that others read."""
    header = {"model": "m", "problems": f"of {len(problems)}", "n": len(problems), "decoding": asdict(decoding), **fields}
    write_json_atomically(header_path(records), header)


def write_records(path: Path, right: set[int], count: int = 10, **fields) -> Path:
    rows = [{"id": f"p{i}", "sample": 0, "response": "x", "answer": str(i), "value": str(i), "label": str(i),
             "correct": i in right, "tokens": 3, "finish_reason": "stop", **fields} for i in range(count)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"input": "What?"}], "row 1: needs input and label"),
        ([{"label": 3}], "row 1: needs input and label"),
        ([{"input": "What?", "label": "1/2"}], "row 1: label '1/2' is not an integer"),
        ([{"input": "What?", "label": 1}, {"input": "What? ", "label": 1}], "stand there twice"),
    ],
)
def test_a_bad_set_is_refused_with_its_row(tmp_path: Path, rows: list, message: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(EvaluationError, match=message):
        read_problems(path)
    with pytest.raises(EvaluationError, match="is missing"):
        read_problems(tmp_path / "no.jsonl")


def test_several_greedy_samples_are_refused() -> None:
    with pytest.raises(EvaluationError, match="greedy samples are all the same"):
        Decoding.of(0.0, 16, 4, "low")


def test_the_denominator_is_fixed(tmp_path: Path) -> None:
    records = write_records(tmp_path / "r.jsonl", {0, 1}, finish_reason="length", answer=None)
    with pytest.raises(EvaluationError, match="nobody knows what the records were made with"):
        summarise("m", records, tmp_path / "set.jsonl")
    write_identity(records, stack={"vllm": "1"})
    summary = summarise("m", records, tmp_path / "set.jsonl")
    assert summary["score"]["mean"] == 0.2
    assert (summary["truncated"], summary["no_answer"], summary["n"]) == (10, 10, 10)
    assert summary["decoding"]["prompt_fingerprint"]
    assert summary["tier"] == "sanity only"
    assert summary["stack"] == {"vllm": "1"}  # of what made the records, not of what is installed now
    write_records(records, {0}, count=9)
    with pytest.raises(EvaluationError, match="lacks 1 of 10"):
        summarise("m", records, tmp_path / "set.jsonl")


def test_different_problems_or_decoding_are_not_compared(tmp_path: Path) -> None:
    a, b = (load_evaluation(write_records(tmp_path / f"{name}.jsonl", {1})) for name in "ab")
    refuse_different(a, b, allow_unknown=True)
    with pytest.raises(EvaluationError, match="nobody knows how .*a.jsonl was decoded.*--allow-unknown-decoding"):
        refuse_different(a, b)
    fewer = load_evaluation(write_records(tmp_path / "c.jsonl", {1}, count=8))
    with pytest.raises(EvaluationError, match="2 only in the first, 0 only in the second"):
        refuse_different(a, fewer)
    for name, tokens in (("a", 16), ("b", 32)):
        write_identity(tmp_path / f"{name}2.jsonl", Decoding.of(0.0, tokens, 1, "low"))
        write_records(tmp_path / f"{name}2.jsonl", {1})
    with pytest.raises(EvaluationError, match="decoded differently .max_tokens: 16 against 32"):
        refuse_different(load_evaluation(tmp_path / "a2.jsonl"), load_evaluation(tmp_path / "b2.jsonl"))


def test_a_runs_evaluations_are_told_apart_by_step(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    rows = [{"step": step, "id": f"p{i}", "correct": step == 40} for step in (0, 40) for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_evaluation(path).score.mean == 1.0
    assert load_evaluation(path, 0).score.mean == 0.0
    with pytest.raises(EvaluationError, match="of step 7"):
        load_evaluation(path, 7)


def run_compare(a: Path, b: Path, *more: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "gptoss_rl.stats", "compare", a, b, *more]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_compare_command(tmp_path: Path) -> None:
    a = write_records(tmp_path / "a.jsonl", set(range(40)), count=200)
    b = write_records(tmp_path / "b.jsonl", set(range(200)), count=200)
    refused = run_compare(a, b)
    assert refused.returncode == 1
    assert "nobody knows how" in refused.stderr
    done = run_compare(a, b, "--allow-unknown-decoding")
    assert done.returncode == 0, done.stderr
    for word in (
        "tier: stability, ±3.4 %",
        "20.0%",
        "100.0%",
        "+80.0 points",
        "160 problems gained, 0 lost",
        "B is better than A",
    ):
        assert word in done.stdout, word
    done = run_compare(a, write_records(b, {1}, count=3))
    assert done.returncode == 1
    assert "not of the same problems" in done.stderr


def test_models_are_not_ranked_by_a_sanity_set(tmp_path: Path) -> None:
    files = write_records(tmp_path / "a.jsonl", {0}), write_records(tmp_path / "b.jsonl", set(range(10)))
    done = run_compare(*files, "--allow-unknown-decoding")
    assert done.returncode == 1
    assert "10 problems are for sanity only; models are not ranked by them" in done.stderr
    assert "better" not in done.stdout


def test_a_runs_own_evaluation_knows_its_decoding(tmp_path: Path) -> None:
    flags = {"eval_temperature": 0.0, "generate_max_len": 16, "eval_n_samples_per_prompt": 1, "reasoning_effort": "low",
             "prompt_fingerprint": GREEDY.prompt_fingerprint}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(flags))
    run = load_evaluation(write_records(tmp_path / "eval.jsonl", {1}))
    same, longer = tmp_path / "same.jsonl", tmp_path / "longer.jsonl"
    for path, tokens in ((same, 16), (longer, 32)):
        write_identity(path, Decoding.of(0.0, tokens, 1, "low"))
        write_records(path, {1})
    refuse_different(run, load_evaluation(same))
    with pytest.raises(EvaluationError, match="max_tokens: 16 against 32"):
        refuse_different(run, load_evaluation(longer))


def test_an_adapter_for_another_base_is_refused_by_name(gpt_oss_folder: Path, tmp_path: Path) -> None:
    from gptoss_rl.models.random_model import random_adapter
    from gptoss_rl.training.checkpoints import save_adapter

    save_adapter(random_adapter(gpt_oss_folder, rank=4), tmp_path / "adapter")
    AdapterFiles(tmp_path / "adapter", gpt_oss_folder)
    for name, change in {"wide": {"hidden_size": 96}, "deep": {"num_hidden_layers": 3}}.items():
        save_random_gpt_oss(tmp_path / name, **change)
        with pytest.raises(EvaluationError, match="another model's adapter"):
            AdapterFiles(tmp_path / "adapter", tmp_path / name)
    with pytest.raises(EvaluationError, match="is no PEFT adapter"):
        AdapterFiles(tmp_path, gpt_oss_folder)


def test_an_adapter_for_another_base_of_the_same_shape_is_refused_by_name(gpt_oss_folder: Path, tmp_path: Path) -> None:
    from gptoss_rl.models.mxfp4 import quantize_checkpoint
    from gptoss_rl.models.random_model import random_adapter
    from gptoss_rl.training.checkpoints import save_adapter

    save_adapter(random_adapter(gpt_oss_folder, rank=4), tmp_path / "adapter")
    quantize_checkpoint(gpt_oss_folder, tmp_path / "mxfp4")
    AdapterFiles(tmp_path / "adapter", tmp_path / "mxfp4")  # the same base in its other form
    save_random_gpt_oss(tmp_path / "other", seed=1)
    with pytest.raises(EvaluationError, match=rf"adapter was trained on another base: {gpt_oss_folder} .*, while .*other has"):
        AdapterFiles(tmp_path / "adapter", tmp_path / "other")


@pytest.mark.e2e(seconds=90)
def test_a_killed_evaluation_goes_on_to_the_same_result(
    finished_run: Path, tiny: Path, eval_file: Path, tmp_path: Path
) -> None:
    # What it is compared with was never killed: the run's own evaluation, before its first step.
    wanted = {row["id"]: row for row in read_json_lines(finished_run / "eval.jsonl") if row["step"] == 0}
    assert len(wanted) == 40
    command = [sys.executable, "eval_posthoc.py", "--model_path", tiny, "--eval_set", eval_file,
               "--max_tokens", "32", "--reasoning_effort", "low", "--output", tmp_path]  # fmt: skip

    # What a kill leaves: some whole lines, and perhaps a torn one. A real kill is timed so that it hits the generation.
    records = tmp_path / eval_file.stem / "tiny-gptoss.jsonl"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          start_new_session=True) as process:  # fmt: skip
        deadline = time.monotonic() + 600
        while process.poll() is None and not (records.exists() and records.stat().st_size):
            assert time.monotonic() < deadline, f"waited 600 s for the first record in {records}"
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    lines = [line for line in records.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = random.Random(0).randrange(1, 30)
    records.write_text("".join(lines[:kept]) + lines[-1][:40])
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    made = records.read_text().splitlines(keepends=True)
    assert made[: len(lines[:kept])] == lines[:kept]
    got = {row["id"]: row for row in map(json.loads, made)}
    assert len(got) == len(made) == 40
    assert {key: row["response"] for key, row in got.items()} == {key: row["response"] for key, row in wanted.items()}
    summary = json.loads(records.with_suffix(".summary.json").read_text())
    assert (summary["n"], summary["score"]["mean"]) == (40, sum(row["correct"] for row in wanted.values()) / 40)
