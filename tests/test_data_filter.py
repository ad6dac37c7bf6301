"""What the filter refuses before it works, what it says that it did, and that its shortcuts change no verdict."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from workplace import problem

from filter_numinamath import EXCLUDED_SOURCES, main, parse_arguments
from gptoss_rl.data import files
from gptoss_rl.data.contamination import Index, Problem
from gptoss_rl.data.files import DataError, InterruptedLate, iter_lines, write_all
from gptoss_rl.data.lengths import Lengths, splits_words
from gptoss_rl.data.normalise import normalise
from gptoss_rl.data.numina import survivors
from gptoss_rl.data.numina_fixture import frame, good_row, make_rows
from gptoss_rl.data.solve_rates import solve_rates

ROOT = Path(__file__).resolve().parent.parent
ROWS = [row for _, row in make_rows(100)]


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "numina.parquet"
    frame(ROWS).write_parquet(path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *words) -> str | int | None:
    """The filter in this process; what it ends with, None after success."""
    monkeypatch.setattr(sys, "argv", ["filter_numinamath.py", *map(str, ("--tokenizer", "none", "--active_size", 20, *words))])
    try:
        main()
    except SystemExit as end:
        return end.code
    return None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: --exclude"),
        (["--exclude", "none", "a.jsonl"], "none stands alone"),
        (["--exclude", "eval.parquet"], "evaluation sets are read from .jsonl or .jsonl.gz"),
        (["--exclude", "none", "--active_size", "0"], "1 <= active <= pool is needed"),
        (["--exclude", "none", "--active_size", "-1"], "1 <= active <= pool is needed"),
        (["--exclude", "none", "--pool_size", "-5"], "1 <= active <= pool is needed"),
        (["--exclude", "none", "--pool_size", "10"], "1 <= active <= pool is needed"),
        (["--exclude", "none", "--band", "0.9", "0.1"], "the lower one first"),
        (["--exclude", "none", "--band", "5", "95"], "between 0 and 1"),
        (["--exclude", "none", "--band", "nan", "nan"], "between 0 and 1"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_source_that_no_row_has_is_an_error_when_named_and_a_warning_by_default(
    parquet, tmp_path, monkeypatch, capsys
) -> None:
    words = ["--exclude", "none", "--input", parquet, "--output_dir", tmp_path / "out"]
    said = run(monkeypatch, *words, "--exclude_sources", "AMC_AIME")
    assert "--exclude_sources: no row has the source AMC_AIME; the sources are amc_aime, olympiads" in said
    assert run(monkeypatch, *words, "--exclude_sources", "none") is None
    kept = (tmp_path / "out" / "sft_rl_pool.jsonl").read_text()
    assert '"source": "amc_aime"' in kept
    frame([row for row in ROWS if row["source"] not in EXCLUDED_SOURCES]).write_parquet(parquet)
    capsys.readouterr()
    assert run(monkeypatch, *words) is None
    assert "warning: nothing was excluded by source: no row has the source amc_aime" in capsys.readouterr().err


def test_a_set_without_a_match_is_named_with_zeros_and_none_says_unchecked(parquet, tmp_path, monkeypatch, capsys) -> None:
    apart, out = tmp_path / "apart.jsonl", tmp_path / "out"
    apart.write_text(json.dumps({"problem": "Which number is written upon the moon?"}) + "\n")
    words = ["--input", parquet, "--output_dir", out]
    assert run(monkeypatch, *words, "--exclude", apart) is None
    manifest = json.loads((out / "sft_rl_pool.meta.json").read_text())
    assert manifest["contamination"] == {"apart.jsonl": {"exact": 0, "ngram": 0, "near": 0}}
    assert "| `apart.jsonl` | 0 | 0 | 0 |" in (out / "README.md").read_text()
    assert "apart.jsonl" in capsys.readouterr().out
    assert run(monkeypatch, *words, "--exclude", "none") is None
    assert "compared with no evaluation set (`--exclude none`)" in (out / "README.md").read_text()
    said = capsys.readouterr().out
    assert "compared with no evaluation set: --exclude none" in said
    assert "not the 50,000 of --pool_size" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "rows.csv"], "ends in none of .parquet, .arrow, .jsonl, .jsonl.gz"),
        (["--tokenizer", "broken.json"], "broken.json is no tokenizer.json"),
        (["--tokenizer", "empty"], "empty/tokenizer.json is missing"),
        (["--output_dir", "rows.csv"], "Not a directory"),
        (["--output_dir", "rows.csv/below"], "Not a directory"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(parquet, tmp_path, monkeypatch, words: list[str], message: str) -> None:
    (tmp_path / "rows.csv").write_text("problem\n")
    (tmp_path / "broken.json").write_text('{"model": 3}')
    (tmp_path / "empty").mkdir()
    words = [word if word.startswith("--") else tmp_path / word for word in words]
    said = run(monkeypatch, "--exclude", "none", "--input", parquet, "--output_dir", tmp_path / "out", *words)
    assert message in str(said)
    assert not (tmp_path / "out").exists()


def rates(tmp_path: Path, rows: list[dict]) -> Path:
    path = tmp_path / "baseline.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_solve_rates_are_shares_of_samples(tmp_path: Path) -> None:
    rows = [{"id": key, "sample": n, "correct": n < right} for key, right in (("a", 1), ("b", 0), ("c", 4)) for n in range(4)]
    path = rates(tmp_path, rows)
    (tmp_path / "baseline.identity.json").write_text(json.dumps({"model": "base", "adapter": None}))
    assert solve_rates(path) == {"a": 0.25, "b": 0.0, "c": 1.0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "a", "correct": 1}], "row 1: needs the fields id \\(text\\) and correct \\(true or false\\)"),
        ([{"id": ["a"], "correct": True}], "needs the fields id"),
        ([{"id": 7, "correct": True}], "needs the fields id"),
        ([{"id": "a", "correct": True, "step": 40}], "of a policy in training \\(step 40\\)"),
        ([{"id": "a", "correct": True, "sample": 0}] * 2, "row 2: sample 0 of problem a stands there twice"),
        ([{"id": i, "correct": True, "sample": s} for i, s in (("a", 0), ("a", 1), ("b", 0))],
         "1 problems have fewer than 2 samples, first b; the evaluation was not finished"),
    ],
)  # fmt: skip
def test_what_is_no_rate_of_the_base_model_is_refused(tmp_path: Path, rows: list[dict], message: str) -> None:
    with pytest.raises(DataError, match=message):
        solve_rates(rates(tmp_path, rows))


@pytest.mark.parametrize("name", ["baseline.identity.json", "baseline.summary.json"])
def test_rates_of_an_adapter_are_refused(tmp_path: Path, name: str) -> None:
    path = rates(tmp_path, [{"id": "a", "correct": True}])
    (tmp_path / name).write_text(json.dumps({"model": "base", "adapter": "runs/x/adapter"}))
    with pytest.raises(DataError, match="made with the adapter runs/x/adapter"):
        solve_rates(path)


def arrow(path: Path, new) -> bytearray:
    table = pl.from_dicts([good_row(i) for i in range(400)]).to_arrow()
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_overwritten_arrow_bytes_are_an_error(tmp_path: Path, new, share: float) -> None:
    path = tmp_path / "rows.arrow"
    data = arrow(path, new)
    assert survivors(path, [], keep_synthetic=True).read == 400
    start = int(len(data) * share)
    data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.raises(DataError, match="cut off or damaged"):
        survivors(path, [], keep_synthetic=True)


def test_a_stream_that_ends_early_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    data = arrow(path, pa.ipc.new_stream)
    third = [at for at in range(len(data) - 8) if data[at : at + 4] == b"\xff" * 4][3]
    for spoilt in (data[:third], data[:third] + b"\xff\xff\xff\xff\0\0\0\0" + data[third + 8 :]):
        path.write_bytes(spoilt)  # pyarrow reads the batches before it, and says nothing
        with pytest.raises(DataError, match="the stream ends at byte"):
            survivors(path, [], keep_synthetic=True)


def test_a_wrong_byte_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n' * 4 + b'{"id": "\xe9"}\n' + b'{"id": "a"}\n')
    with pytest.raises(DataError, match="line 5: cut off or damaged"):
        list(iter_lines(path))


def test_the_screen_before_minhash_loses_no_match() -> None:
    texts = [good_row(n)["problem"] for n in range(60)]
    short = "Compute the sum of the first ten odd primes"
    index = Index(Problem(str(n), text, "eval") for n, text in enumerate([*texts, short]))
    variants = [" ".join(word for i, word in enumerate(text.split()) if i % 11 != n % 11) for n, text in enumerate(texts)]
    variants += [f"{short} please", short]
    variants += ["Long ago it was told at night. " + text for text in texts] + [good_row(n)["problem"] for n in range(60, 400)]
    variants += [good_row(n)["problem"].replace("Find", "Say") for n in range(60)] + ["What is 2 + 2?", "two", ""]
    screened = [index.matches(Problem("p", text, "pool")) for text in variants]
    assert not any(index.may_match(normalise(problem(n))) for n in range(100))  # and it is worth it
    index.may_match = lambda normalised: True
    assert screened == [index.matches(Problem("p", text, "pool")) for text in variants]
    assert {match.kind for found in screened for match in found} == {"exact", "ngram", "near"}


def tokenizer(texts: list[str], pre_tokenizer) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts * 3, trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False))
    return made


def test_lengths_are_those_that_counting_gives() -> None:
    texts = [good_row(n)["problem"] for n in range(80)] + [
        "one",
        "a b",
        "",
        "é" * 40,
        "x " * 30,
        "!" * 50,
        "a\nb\tc d e f g h",
        "a b c d e f g h i " + "¿9ẞ" * 40,
    ]
    texts += [text * n for n, text in enumerate(texts[:9], start=1)]
    for pre_tokenizer, known in ((pre_tokenizers.ByteLevel(add_prefix_space=True), True),
                                 (pre_tokenizers.ByteLevel(use_regex=False, add_prefix_space=False), False)):  # fmt: skip
        made = tokenizer(texts[:80], pre_tokenizer)
        assert splits_words(made) == known  # the second one joins words, so every text has to be counted
        lengths = Lengths(made, 8, 150)
        counts = [len(made.encode(text).ids) for text in texts]
        assert lengths.judge(texts) == ["short" if n < 8 else "long" if n > 150 else None for n in counts]
        assert set(lengths.judge(texts)) == {"short", "long", None} or not known
        assert (lengths.counted < len(texts)) == known


def test_the_readme_of_a_folder_is_written_with_its_files_or_not_at_all(parquet, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    words = ["--exclude", "none", "--input", parquet, "--output_dir", out]
    assert run(monkeypatch, *words) is None
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupt(folder: Path, new: dict) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("filter_numinamath.readme", interrupt)
    assert run(monkeypatch, *words, "--seed", 7) == "filter_numinamath: interrupted; earlier outputs are untouched"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.undo()
    (out / "README.md").unlink()
    (out / "README.md").mkdir()
    assert "README.md is a directory" in run(monkeypatch, *words, "--seed", 7)
    assert (out / "sft_rl_pool.jsonl").read_bytes() == before["sft_rl_pool.jsonl"]


def test_ctrl_c_between_two_renames_waits_and_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    write_all({path: [{"x": 1}] for path in paths}, {})
    replace, renamed = os.replace, []

    def slow(source: Path, target: Path) -> None:
        replace(source, target)
        renamed.append(target)
        if len(renamed) == 2:  # to the process, as a terminal sends it, with another thread there to take it
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(files.os, "replace", slow)
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with pytest.raises(InterruptedLate):
            write_all({path: [{"x": 2}] for path in paths}, {}, describe=lambda folder, new: "text\n")
    finally:
        done.set()
        other.join()
    assert [path.read_text() for path in paths] == ['{"x": 2}\n'] * 2
    assert len(renamed) == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("closed", [False, True])
def test_a_report_that_cannot_be_printed_is_no_traceback(parquet: Path, tmp_path: Path, closed: bool) -> None:
    command = [sys.executable, "filter_numinamath.py", "--tokenizer", "none", "--active_size", 20, "--exclude", "none",
               "--input", parquet, "--output_dir", tmp_path / "out"]  # fmt: skip
    read, full = os.pipe() if closed else (None, os.open("/dev/full", os.O_WRONLY))
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    for descriptor in filter(None, (read, full)):
        os.close(descriptor)
    said = process.stderr.read()
    assert process.wait() == 1
    assert "Traceback" not in said
    assert "the files are written, but the report could not be printed" in said
    assert (tmp_path / "out" / "sft_rl_pool.jsonl").is_file()
