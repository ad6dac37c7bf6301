"""The command line of the statistics, and the records that it takes: whole, once, of the same set and labels."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from gptoss_rl.evaluation import Decoding, EvaluationError, header_path, load_evaluation, refuse_different
from gptoss_rl.stats.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
FLAGS = {"eval_temperature": 0.0, "generate_max_len": 16, "eval_n_samples_per_prompt": 1, "reasoning_effort": "low",
         "prompt_fingerprint": "x", "eval_dataset": "data/probe_set_200.jsonl"}  # fmt: skip


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(path: Path, right: int, n: int = 200, samples: int = 1, keep: int | None = None) -> Path:
    """Of n problems, `right` of which are solved in every sample, with their identity; `keep` rows of them are there."""
    header = {"n": n, "problems": f"{n} of 1", "decoding": asdict(Decoding.of(float(samples > 1), 16, samples, "low"))}
    header_path(path).write_text(json.dumps(header))
    rows = [{"id": f"p{i:04}", "sample": k, "label": "1", "correct": i < right} for i in range(n) for k in range(samples)]
    return write(path, rows[:keep])


def run(folder: Path, solved: dict[int, int], n: int = 200) -> Path:
    """A run's eval.jsonl: step -> problems solved."""
    (folder / "config.json").write_text(json.dumps(FLAGS))
    rows = [{"step": step, "id": f"p{i:04}", "label": "1", "correct": i < right}
            for step, right in solved.items() for i in range(n)]  # fmt: skip
    return write(folder / "eval.jsonl", rows)


def test_the_module_runs() -> None:
    command = [sys.executable, "-m", "gptoss_rl.stats", "plan", "--n", "1000", "--effect", "0.03", "--discordant", "0.2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # A little more than the normal approximation: 2.8 x sqrt(0.2 / 1000), and (2.8 / 0.03)^2 x (0.2 - 0.03^2).
    plan, needed = done.stdout.splitlines()
    said = "1,000 problems (primary, ±1.5 %), 20 % of which the two models differ on: "
    assert plan.startswith(said)
    assert 3.96 <= float(plan.removeprefix(said).split(" points")[0]) <= 4.3
    assert needed.startswith("3 points are found with 80 % probability on 1,")
    assert 1_737 <= int(needed.split(" on ")[1].split(" problems")[0].replace(",", "")) <= 1_900


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs --n or --effect"),
        (["--effect", "0.3"], "at least as many problems"),
        (["--n", "1000", "--discordant", "15"], "15 is no share of problems"),
        (["--effect", "0.02", "--discordant", "nan"], "nan is no share of problems"),
        (["--n", "0"], "no problems"),
        (["--effect", "0.00001"], "needs more than 10,000,000 problems"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["plan", *words])


def test_steps_of_a_run_are_chosen_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path, {0: 20, 10: 60, 40: 120})
    main(["compare", f"{path}@0", str(path)])
    said = capsys.readouterr().out
    assert f"A = {path}, step 0\nB = {path}, step 40\ntier: stability" in said
    assert "A, step 0  10.0%" in said
    assert "B, step 40  60.0%" in said
    assert "100 problems gained, 0 lost" in said
    main(["compare", f"{path}@10", f"{path}@40", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["gained"], told["steps"], told["tier"]) == (60, [10, 40], "stability")
    with pytest.raises(SystemExit, match="holds no evaluation of step 7"):
        main(["compare", f"{path}@7", str(path)])
    (tmp_path / "A.jsonl").write_bytes(records(tmp_path / "B.jsonl", 3).read_bytes())
    with pytest.raises(SystemExit, match="holds no evaluation of step 7"):  # a file without steps has no step 7
        main(["compare", f"{tmp_path}/B.jsonl@7", str(path)])


def test_the_tier_is_that_of_the_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = records(tmp_path / "a.jsonl", 300, n=900), records(tmp_path / "b.jsonl", 400, n=900)
    tiers = []
    for name in (None, "data/probe_set_1000_ood.jsonl", "data/sft_rl_pool_3200.jsonl"):
        if name:
            a.with_suffix(".summary.json").write_text(json.dumps({"eval_set": name}))
        main(["compare", str(a), str(b), "--json"])
        tiers.append(json.loads(capsys.readouterr().out)["tier"])
    assert tiers == ["primary", "primary", "stability"]


@pytest.mark.parametrize("flag", ["--allow_unknown_decoding", "--allow-unknown-decoding"])
def test_unknown_decoding_is_allowed_in_either_spelling(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(records(tmp_path / f"{name}.jsonl", 100)) for name in "ab"]
    for name in "ab":
        (tmp_path / f"{name}.identity.json").unlink()
    with pytest.raises(SystemExit, match="nobody knows how"):
        main(["compare", *files])
    main(["compare", *files, flag])
    assert "No difference can be told from chance" in capsys.readouterr().out


def test_an_unfinished_evaluation_is_refused(tmp_path: Path) -> None:
    # Both killed at the same place: the same problems, so that only the identity tells.
    with pytest.raises(EvaluationError, match="lacks 80 of 200 responses: the evaluation is not finished"):
        load_evaluation(records(tmp_path / "a.jsonl", 100, keep=120))
    with pytest.raises(EvaluationError, match="lacks 600 of 1600"):  # every problem is there, most with all samples
        load_evaluation(records(tmp_path / "b.jsonl", 100, samples=8, keep=1000))
    path = run(tmp_path, {0: 20, 40: 60})
    write(path, [json.loads(line) for line in path.read_text().splitlines()[:-50]])
    with pytest.raises(EvaluationError, match="lacks 50 of 200"):  # the other steps tell how many problems there are
        load_evaluation(path)
    assert load_evaluation(path, 0).score.n == 200


def test_a_response_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = records(tmp_path / "a.jsonl", 100)
    path.write_text(path.read_text() + path.read_text().splitlines()[3] + "\n")
    with pytest.raises(EvaluationError, match="1 responses stand there twice, first one to problem p0003"):
        load_evaluation(path)
    eval_path = run(tmp_path, {0: 20})  # records of a run have no number of the sample
    eval_path.write_text(eval_path.read_text() + eval_path.read_text().splitlines()[3] + "\n")
    with pytest.raises(EvaluationError, match="1 problems do not have 1 responses, first p0003"):
        load_evaluation(eval_path)


def test_more_problems_than_were_meant_are_refused(tmp_path: Path) -> None:
    path = records(tmp_path / "a.jsonl", 100, n=10)
    path.write_text(path.read_text() + json.dumps({"id": "new", "sample": 0, "label": "1", "correct": True}) + "\n")
    with pytest.raises(EvaluationError, match="holds 11 problems, the evaluation was of 10"):
        load_evaluation(path)


@pytest.mark.parametrize("line", ["[1]", "5", '{"id": "p"}', '{"correct": true}'])
def test_what_is_no_record_is_refused(line: str, tmp_path: Path) -> None:
    path = records(tmp_path / "a.jsonl", 100)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(EvaluationError, match="rows have no id or no correct"):
        load_evaluation(path)


def test_other_labels_and_other_sets_are_not_compared(tmp_path: Path) -> None:
    a, b = (load_evaluation(records(tmp_path / f"{name}.jsonl", 100)) for name in "ab")
    refuse_different(a, b)
    rows = [{**row, "label": "2" if row["id"] < "p0100" else "1"} for row in b.rows]
    relabelled = load_evaluation(write(tmp_path / "b.jsonl", rows))
    with pytest.raises(EvaluationError, match="different labels for 100 problems, first p0000: 1 against 2"):
        refuse_different(a, relabelled)
    other = json.loads((tmp_path / "b.identity.json").read_text()) | {"problems": "0" * 16}
    (tmp_path / "b.identity.json").write_text(json.dumps(other))
    write(tmp_path / "b.jsonl", b.rows)
    with pytest.raises(EvaluationError, match="sets that differ in a problem, a label or the order"):
        refuse_different(a, load_evaluation(tmp_path / "b.jsonl"))
