"""The data pipeline: every verdict on rows whose verdict is known, nothing glued, nothing shared with an evaluation set."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import build_ood_1000
from gptoss_rl.data.contamination import Index, Problem, match_table, near_duplicates
from gptoss_rl.data.files import manifest_path, prompt_row, read_lines, write_all
from gptoss_rl.data.normalise import normalise
from gptoss_rl.data.numina import answer_verdict, column_rules, judge, survivors
from gptoss_rl.data.numina_fixture import bad_rows, frame, good_row, kept_rows, make_rows
from gptoss_rl.data.verify import verify_file
from gptoss_rl.errors import GateError
from gptoss_rl.prompts import problem_id
from gptoss_rl.run.launch_gates import check_disjoint
from reward_func_em import parse_integer

ROOT = Path(__file__).resolve().parent.parent
ROWS = make_rows()


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "numina.parquet"
    frame([row for _, row in ROWS]).write_parquet(path)
    return path


def run_filter(parquet: Path, *words) -> subprocess.CompletedProcess:
    command = [sys.executable, "filter_numinamath.py", "--input", parquet, "--tokenizer", "none", "--active_size", "20"]
    command += words if "--exclude" in words else ["--exclude", "none", *words]
    return subprocess.run([str(w) for w in command], cwd=ROOT, capture_output=True, text=True, check=False)


def verdict(row: dict) -> str | None:
    judged = judge(frame([row]), column_rules(["amc_aime"], keep_synthetic=False))
    reason = judged["reason"][0]
    return reason or answer_verdict(row["answer"], row["problem"], row["solution"])[1]


@pytest.mark.parametrize(("reason", "row"), bad_rows())
def test_a_bad_row_is_rejected_for_the_right_reason(reason: str, row: dict) -> None:
    assert verdict(row) == reason


@pytest.mark.parametrize("row", [good_row(i) for i in range(12)] + kept_rows())
def test_a_good_row_is_kept_with_the_graders_label(row: dict) -> None:
    assert verdict(row) is None
    assert answer_verdict(row["answer"], row["problem"], row["solution"])[0] == parse_integer(row["answer"])


def test_every_column_rule_is_broken_by_some_row() -> None:
    assert {reason for reason, _ in column_rules([], False)} <= {reason for reason, _ in bad_rows()}


def test_the_command_gives_every_row_its_verdict_and_counts_add_up(parquet: Path, tmp_path: Path) -> None:
    done = run_filter(parquet, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    pool = read_lines(tmp_path / "out" / "sft_rl_pool.jsonl")
    wanted = {problem_id(row["problem"]) for reason, row in ROWS if reason is None}
    assert {row["id"] for row in pool} == wanted
    meta = json.loads((tmp_path / "out" / "sft_rl_pool.meta.json").read_text())
    expected: dict[str, int] = {}
    for reason, _ in ROWS:
        if reason is not None:
            expected[reason] = expected.get(reason, 0) + 1
    assert meta["rejected"] == expected
    assert meta["rows_read"] == len(ROWS) == len(pool) + sum(expected.values())
    assert all(row["label"] == str(parse_integer(row["answer"])) for row in pool)
    assert verify_file(tmp_path / "out" / "sft_rl_pool_20.jsonl") == []
    assert "near-duplicate" in done.stdout


def test_same_seed_same_bytes_and_another_seed_another_order(parquet: Path, tmp_path: Path) -> None:
    made = {}
    for name, words in {"a": (), "b": (), "c": ("--seed", "7")}.items():
        assert run_filter(parquet, "--output_dir", tmp_path / name, *words).returncode == 0
        made[name] = (tmp_path / name / "sft_rl_pool_20.jsonl").read_bytes()
    assert made["a"] == made["b"] != made["c"]


def test_every_format_gives_the_same_pool(parquet: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "numina.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for _, row in ROWS))
    pools = []
    for path in (parquet, jsonl):
        assert run_filter(path, "--output_dir", tmp_path / path.suffix).returncode == 0
        pools.append((tmp_path / path.suffix / "sft_rl_pool.jsonl").read_bytes())
    assert pools[0] == pools[1]


def test_what_stands_in_an_evaluation_set_is_removed_and_named(parquet: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "eval.jsonl"
    texts = [good_row(i)["problem"] for i in (10, 21)]
    held_out.write_text("".join(json.dumps({"problem": text.replace(" ", "  ")}) + "\n" for text in texts))
    assert (
        run_filter(parquet, "--output_dir", tmp_path / "out", "--exclude", held_out, "--exclude-sources", "amc_aime").returncode
        == 0
    )
    ids = {row["id"] for row in read_lines(tmp_path / "out" / "sft_rl_pool.jsonl")}
    assert not ids & {problem_id(text) for text in texts}
    pairs = read_lines(tmp_path / "out" / "contaminated_pairs.jsonl")
    assert {pair["kind"] for pair in pairs} == {"exact"}
    assert {pair["other_set"] for pair in pairs} == {"eval.jsonl"}
    meta = json.loads((tmp_path / "out" / "sft_rl_pool.meta.json").read_text())
    assert meta["contamination"]["eval.jsonl"]["exact"] == meta["rejected"]["contaminated (exact)"] == 2


def test_only_the_learning_zone_is_kept(parquet: Path, tmp_path: Path) -> None:
    rates = tmp_path / "rates.jsonl"
    rows = []
    for number in range(30):
        share = number % 3  # none, half or all right
        rows += [{"id": problem_id(good_row(number)["problem"]), "correct": sample < share} for sample in range(2)]
    rates.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_filter(parquet, "--output_dir", tmp_path / "out", "--solve-rates", rates, "--active_size", "5")
    assert done.returncode == 0, done.stderr
    kept = {row["id"] for row in read_lines(tmp_path / "out" / "sft_rl_pool.jsonl")}
    assert kept == {problem_id(good_row(n)["problem"]) for n in range(30) if n % 3 == 1}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-200]), "is cut off or damaged, or no parquet"),
        (lambda p: p.write_bytes(b""), "is cut off or damaged, or no parquet"),
        (lambda p: p.unlink(), "is missing; get it with: python -m gptoss_rl.data fetch numinamath15"),
        (lambda p: frame([r for _, r in ROWS]).drop("answer").write_parquet(p), "lacks the column answer"),
        (lambda p: frame([r for _, r in ROWS]).with_columns(answer=1).write_parquet(p), "answer is Int32"),
        (lambda p: frame([]).write_parquet(p), "is empty"),
    ],
)
def test_bad_input_is_one_clear_error_and_touches_nothing(parquet: Path, tmp_path: Path, spoil, message: str) -> None:
    out = tmp_path / "out"
    assert run_filter(parquet, "--output_dir", out).returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    spoil(parquet)
    done = run_filter(parquet, "--output_dir", out)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_interrupted_write_leaves_the_old_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_all({path: [{"x": 1}]}, {})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def rows():
        yield {"x": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all({tmp_path / "b.jsonl": [{"y": 1}], path: rows()}, {})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_normalisation_keeps_numbers_and_drops_spelling() -> None:
    same = ["Find $x^2$ if  $x = \\left(3\\right)$.", "find x^2 if x = (3)", "FIND \\(x^2\\) if $x\\,=\\;(3)$?"]
    assert len({normalise(text) for text in same}) == 1
    assert normalise("Find $x$ if $x=31$") != normalise("Find $x$ if $x=32$")


STORY = ("The old city has seven towers and every tower has nine windows that look upon the river, which two bridges cross. "
         "A guide counts the windows that can be seen from the first bridge. How many are there?")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (STORY, "exact"),
        (STORY.upper().replace(" ", "  "), "exact"),
        (STORY.replace("A guide counts", "One guide counts"), "ngram"),
        ("Once upon a time there was a clever goat. " + STORY, "ngram"),
        (" ".join(w if i % 9 else w + "s" for i, w in enumerate(STORY.split(), 5)), None),
        ("How many windows does a city with seven towers have?", None),
    ],
)
def test_contamination_is_found_in_every_form(text: str, kind: str | None) -> None:
    index = Index([Problem("e", STORY, "eval"), Problem("f", "What is 2 + 2?", "eval")])
    match = index.find(Problem("p", text, "pool"))
    assert (match and match.kind) == kind
    assert match is None or match.other_id == "e"


def test_a_problem_that_stands_in_two_sets_is_named_for_both() -> None:
    near = STORY.replace("A guide counts", "One guide counts")
    index = Index([Problem("a", near, "first"), Problem("b", STORY, "second"), Problem("c", "What is 2 + 2?", "third")])
    found = index.matches(Problem("p", STORY, "pool"))
    assert [(match.other_set, match.kind) for match in found] == [("second", "exact"), ("first", "ngram")]
    assert match_table(found, ["second", "third"]) == {
        "first": {"exact": 0, "ngram": 1, "near": 0},
        "second": {"exact": 1, "ngram": 0, "near": 0},
        "third": {"exact": 0, "ngram": 0, "near": 0},
    }


def test_a_short_text_is_found_by_its_shingles() -> None:
    index = Index([Problem("e", "Compute the sum of the first ten odd primes", "eval")])
    assert index.find(Problem("p", "Compute the sum of the first ten odd primes please", "pool")).kind == "near"


def test_variants_with_other_labels_are_no_duplicates() -> None:
    texts = [STORY, STORY.replace("A guide", "The guide"), STORY.replace("A guide", "Some guide")]
    assert near_duplicates(list(map(normalise, texts)), [5, 5, 6]).tolist() == [-1, 0, -1]


def test_the_launch_gate_sees_a_near_copy() -> None:
    def rows(text: str) -> list[dict]:
        return [{"problem": text, "line": 1, "label": "7"}]

    check_disjoint(rows(STORY), rows("What is 2 + 2?"))
    with pytest.raises(GateError, match="1 training problems stand in the evaluation set in another form.*--exclude"):
        check_disjoint(rows(STORY), rows(STORY.replace("A guide", "One guide")))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r | {"label": "1,2"}, "is not an integer"),
        (lambda r: r | {"id": "0" * 16}, "is not its problem's"),
        (lambda r: {k: v for k, v in r.items() if k != "source"}, "no source"),
    ],
)
def test_verify_notices_every_change(parquet: Path, tmp_path: Path, spoil, message: str) -> None:
    run_filter(parquet, "--output_dir", tmp_path / "out")
    path = tmp_path / "out" / "sft_rl_pool_20.jsonl"
    rows = read_lines(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in [spoil(rows[0]), *rows[1:], rows[1]]))
    found = " | ".join(verify_file(path))
    for word in ("sha256", "21 rows", "stands there twice", message):
        assert word in found, word
    manifest_path(path).unlink()
    assert "has no manifest" in verify_file(path)[0]


def made_math(count: int, level: str, offset: int = 0) -> list[dict]:
    return [
        {"problem": good_row(i + offset)["problem"], "level": level, "answer": str(i), "unique_id": f"m{i + offset}"}
        for i in range(count)
    ]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sizes = {"MATH45_TRAIN": 241, "MATH45_EVAL": 60, "OOD": 40, "OOD_SMALL": 9, "ID_SIZE": 20, "AIME_SIZE": 5}
    for name, size in sizes.items():
        monkeypatch.setattr(build_ood_1000, name, size)
    folder = tmp_path / "sources"
    folder.mkdir()
    train = [*made_math(200, "Level 5"), *made_math(20, "Level 3", 2000), {**made_math(1, "Level 4", 3000)[0], "answer": ""}]
    test = [*made_math(100, "Level 4", 400), {**made_math(1, "Level 5")[0], "unique_id": "twin"}]
    for name, rows in {"math_train": train, "math_test": test}.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    for number, name in enumerate(("aime24", "aime25", "amc23", "olympiadbench")):
        lines = [{"question": good_row(4000 + 100 * number + i)["problem"], "expected_answer": str(i)} for i in range(10)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run_build(sources: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *words) -> int:
    monkeypatch.setattr(
        sys, "argv", ["build_ood_1000.py", "--sources", str(sources), "--output_dir", str(out), *map(str, words)]
    )
    with pytest.raises(SystemExit) as end:
        build_ood_1000.main()
    return end.value.code


def test_evaluation_sets_are_apart_and_the_same_every_time(sources, tmp_path, monkeypatch, capsys) -> None:
    # The shortlist is missing: named with its remedy, and the rest is made.
    assert run_build(sources, tmp_path / "a", monkeypatch) == 1
    said = capsys.readouterr()
    assert "apex_shortlist is missing" in said.err
    assert "python -m gptoss_rl.data fetch apex_shortlist" in said.err
    assert "m0 and twin" in said.out or "twin and m0" in said.out
    sets = {path.name: read_lines(path) for path in (tmp_path / "a").glob("*.jsonl")}
    assert {name: len(rows) for name, rows in sets.items()} == {
        "math45_train.jsonl": 241, "math45_eval.jsonl": 60, "math45_train_integer.jsonl": 240,
        "math45_eval_integer.jsonl": 60, "probe_set_1000_ood.jsonl": 40, "probe_set_200_ood.jsonl": 9,
        "aime_eval.jsonl": 5, "ood_in_training.jsonl": 3,
    }  # fmt: skip
    ids = {name: {row["id"] for row in rows} for name, rows in sets.items() if name != "ood_in_training.jsonl"}
    assert not ids["math45_train.jsonl"] & ids["math45_eval.jsonl"]
    assert not ids["probe_set_1000_ood.jsonl"] & ids["probe_set_200_ood.jsonl"]
    assert not ids["math45_train.jsonl"] & ids["probe_set_1000_ood.jsonl"]
    run_build(sources, tmp_path / "b", monkeypatch)
    for path in (tmp_path / "a").glob("*.jsonl"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_pool_and_the_evaluation_sets_do_not_meet(sources, parquet, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    run_build(sources, out, monkeypatch)
    evaluations = [path for path in sorted(out.glob("*.jsonl")) if path.name != "ood_in_training.jsonl"]
    words = ["--output_dir", out, "--exclude", *evaluations, "--active_size", "60"]
    done = run_filter(parquet, *words)
    assert done.returncode == 1  # the made-up MATH uses the pool's own problems
    assert "fewer than --active_size" in done.stderr
    shutil.rmtree(out)
    for path in sources.glob("math_*"):  # now MATH is something else
        rows = read_lines(path)
        for row in rows:
            row["problem"] = f"Let $z$ be the {row['unique_id']}th root of the tower. {row['problem'][::-1]} Find $z$."
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    run_build(sources, out, monkeypatch)
    done = run_filter(parquet, *words)
    assert done.returncode == 0, done.stderr
    active = out / "sft_rl_pool_60.jsonl"
    run_build(sources, out, monkeypatch, "--pool", out / "sft_rl_pool.jsonl", "--active", active)
    verified = subprocess.run(
        [sys.executable, "-m", "gptoss_rl.data", "verify", out], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "sft_rl_pool_60.jsonl x probe_set_200.jsonl: disjoint" in verified.stdout


def test_a_source_without_integer_answers_is_an_error(sources, tmp_path, monkeypatch) -> None:
    (sources / "amc23.jsonl").write_text(json.dumps({"problem": "What?", "solution_text": "4"}) + "\n")
    assert "amc23: none of 1 rows has an integer answer" in str(run_build(sources, tmp_path / "out", monkeypatch))


def test_reading_is_streamed_and_the_grader_reads_the_answers(parquet: Path) -> None:
    result = survivors(parquet, ["amc_aime"], keep_synthetic=False)
    assert result.read == len(ROWS)
    assert all(row["label"] == parse_integer(row["answer"]) for row in result.rows)


def cut(path: Path, left: int) -> None:
    opened = gzip.open if path.suffix == ".gz" else open
    rows = read_lines(path)[:left]
    with opened(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "left", "message"),
    [
        ("aime24.jsonl", 4, "aime_eval would have 4 problems, not 5; they come from aime24: is it whole?"),
        ("math_train.jsonl.gz", 150, "math45_train would have 191 problems, not 241"),
        ("math_train.jsonl.gz", 1, "math45_train would have"),
    ],
)
def test_a_source_that_was_cut_makes_no_short_set(sources, tmp_path, monkeypatch, name: str, left: int, message: str) -> None:
    cut(sources / name, left)
    said = str(run_build(sources, tmp_path / "out", monkeypatch))
    assert message in said
    assert not (tmp_path / "out").exists()


def test_a_pool_that_is_none_or_too_small_is_refused(sources, tmp_path, monkeypatch, capsys) -> None:
    pool, active, out = tmp_path / "pool.jsonl", tmp_path / "active.jsonl", tmp_path / "out"
    assert run_build(sources, out, monkeypatch, "--active", active) == 2
    assert "name it with --pool" in capsys.readouterr().err
    pool.write_text(json.dumps({"problem": "What?", "label": "4"}) + "\n")
    assert "row 1: no text in id, input, source" in str(run_build(sources, out, monkeypatch, "--pool", pool))
    rows = [prompt_row(good_row(n)["problem"], "4", "made up") for n in range(5_000, 5_025)]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--pool", pool, "--active", active]
    active.write_text(json.dumps(prompt_row("What is $4 + 4$?", "8", "made up")) + "\n")
    assert "1 problems of" in str(run_build(sources, out, monkeypatch, *words))
    active.write_text("".join(json.dumps(row) + "\n" for row in rows[:10]))
    assert "probe_set_200 would have 15 problems, not 20" in str(run_build(sources, out, monkeypatch, *words))
    assert not out.exists()
