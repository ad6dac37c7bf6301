"""Data files whole or not at all, from sources that are pinned, described by what their manifests say."""

import argparse
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

import build_ood_1000
from gptoss_rl.data.contamination import Problem, families, find_matches
from gptoss_rl.data.files import DataError, read_lines, read_manifest
from gptoss_rl.data.numina import survivors
from gptoss_rl.data.numina_fixture import frame, good_row, make_rows
from gptoss_rl.data.readme import readme
from gptoss_rl.data.sources import SOURCES, Source, fetch, locate, read_rows, revision_of
from gptoss_rl.errors import GateError
from gptoss_rl.run.launch_gates import check_manifests

ROOT = Path(__file__).resolve().parent.parent
ROWS = make_rows()
COMMAND = [sys.executable, "filter_numinamath.py", "--tokenizer", "none", "--active_size", "20", "--exclude", "none"]


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "numina.parquet"
    frame([row for _, row in ROWS]).write_parquet(path)
    return path


def run(words: list, **more) -> subprocess.CompletedProcess:
    return subprocess.run([str(w) for w in words], cwd=ROOT, capture_output=True, text=True, check=False, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_full_disk_leaves_the_old_files(parquet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run([*COMMAND, "--input", parquet, "--output_dir", out]).returncode == 0
    before = contents(out)

    def no_space() -> None:  # a write beyond 4 KiB fails as it does on a full disk, with an OSError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = run([*COMMAND, "--input", parquet, "--output_dir", out, "--seed", 7], preexec_fn=no_space)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("filter_numinamath: [Errno")
    assert contents(out) == before


def has_open(process: subprocess.Popen, path: Path) -> bool:
    def target(descriptor: Path) -> str:
        try:
            return str(descriptor.readlink())
        except FileNotFoundError:  # closed since it was listed
            return ""

    return any(target(d) == str(path.resolve()) for d in Path(f"/proc/{process.pid}/fd").iterdir())


def wait_until_it_reads(process: subprocess.Popen, path: Path) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None:
        if has_open(process, path):
            return
        assert time.monotonic() < deadline, f"waited 120 s for the command to open {path}"
        time.sleep(0.01)
    pytest.fail(f"it ended with {process.returncode} before it read anything")


def test_ctrl_c_leaves_the_old_files(tmp_path: Path) -> None:
    source, out = tmp_path / "many.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(good_row(i)) + "\n" for i in range(30_000)))
    out.mkdir()
    (out / "sft_rl_pool.jsonl").write_text("old\n")
    words = [*COMMAND, "--input", source, "--output_dir", out]
    # Where SIGINT is ignored (nohup, a script's background job) a child inherits that, and Python installs no handler.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([str(w) for w in words], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    wait_until_it_reads(process, source)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said.strip().splitlines()[-1] == "filter_numinamath: interrupted; earlier outputs are untouched"
    assert contents(out) == {"sft_rl_pool.jsonl": b"old\n"}


def test_same_bytes_whatever_the_number_of_threads(parquet: Path, tmp_path: Path) -> None:
    for threads in ("1", "4"):
        environment = {**os.environ, "POLARS_MAX_THREADS": threads, "RAYON_NUM_THREADS": threads}
        assert run([*COMMAND, "--input", parquet, "--output_dir", tmp_path / threads], env=environment).returncode == 0
    for path in (tmp_path / "1").glob("*.jsonl"):
        assert path.read_bytes() == (tmp_path / "4" / path.name).read_bytes()


def test_both_arrow_formats_and_json_lines_give_the_same_rows(parquet: Path, tmp_path: Path) -> None:
    table = pl.read_parquet(parquet).to_arrow()
    for name, new in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=50)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _, row in ROWS))
    wanted = survivors(parquet, ["amc_aime"], keep_synthetic=False)
    for name in ("file.arrow", "stream.arrow", "rows.jsonl"):
        got = survivors(tmp_path / name, ["amc_aime"], keep_synthetic=False)
        assert (got.rows, got.reasons) == (wanted.rows, wanted.reasons), name


def test_json_lines_with_a_number_for_an_answer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(good_row(1) | {"answer": 110880}) + "\n")
    with pytest.raises(DataError, match="answer is int \\(110880\\)"):
        survivors(path, [], keep_synthetic=False)


def hub_download(folder: Path, source: Source, name: str, rows: list[dict]) -> Path:
    """A file as the hub's downloader leaves it, with its note of the commit."""
    path = folder / source.name / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(path)
    note = folder / source.name / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{source.revision}\netag\n1700000000.0\n")
    return path


def test_a_download_is_found_with_its_revision(tmp_path: Path) -> None:
    source, rows = SOURCES["math_train"], [{"problem": "What is $1 + 1$?", "level": "Level 5", "solution": "\\boxed{2}"}]
    assert locate(source, tmp_path) == []
    paths = [hub_download(tmp_path, source, f"{name}/train-00000-of-00001.parquet", rows) for name in ("algebra", "geometry")]
    hub_download(tmp_path, source, "algebra/test-00000-of-00001.parquet", rows)
    assert locate(source, tmp_path) == paths
    assert revision_of(paths[0]) == source.revision
    assert list(read_rows(paths[0])) == rows
    plain = tmp_path / "math_train.jsonl"  # a file under the source's own name comes first, and has no revision
    plain.write_text(json.dumps(rows[0]) + "\n")
    assert locate(source, tmp_path) == [plain]
    assert revision_of(plain) is None


def test_fetching_asks_the_hub_for_the_pinned_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = SOURCES["apex_shortlist"], {}

    def download(repository: str, **options) -> None:
        asked.update(options, repository=repository)
        hub_download(options["local_dir"].parent, source, "data/train-00000-of-00001.parquet", [{"problem": "?"}])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert [path.name for path in fetch(source, tmp_path)] == ["train-00000-of-00001.parquet"]
    assert asked == {"repository": "MathArena/apex-shortlist", "repo_type": "dataset", "revision": source.revision,
                     "local_dir": tmp_path / "apex_shortlist", "allow_patterns": ["**/train-*.parquet"]}  # fmt: skip
    assert all(len(s.revision) == 40 and int(s.revision, 16) for s in SOURCES.values())


def test_without_a_network_fetching_says_what_is_not_there(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = run([sys.executable, "-m", "gptoss_rl.data", "fetch", "aime24", "--to", tmp_path], env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"data: math-ai/aime24 at {SOURCES['aime24'].revision[:12]} cannot be fetched")
    done = run([sys.executable, "-m", "gptoss_rl.data", "fetch", "aime27"])
    assert "no source is called aime27; there are numinamath15" in done.stderr


def test_a_missing_input_is_named_with_the_command(tmp_path: Path) -> None:
    done = run(
        [sys.executable, ROOT / "filter_numinamath.py", "--exclude", "none"], **{"env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    )
    if not (ROOT / "data" / "sources").is_dir():
        assert "get it with: python -m gptoss_rl.data fetch numinamath15" in done.stderr


VARIANTS = [
    "Our school has 14 players, among them the triplets Alicia, Amanda and Anna. In how many ways can we choose 6 starters if "
    f"{condition} of the triplets are in the starting lineup?"
    for condition in ("at most one", "exactly two", "all three", "none")
]


def test_families_join_what_matches_by_way_of_others() -> None:
    words = [letter * 2 for letter in "abcdefghijklmnopqrst"]
    chain = [" ".join(words[start : start + 16]) for start in (0, 2, 4)]  # the first and the last match only the second
    assert not find_matches([Problem("0", chain[0], "x")], [Problem("2", chain[2], "x")])
    problems = [Problem(str(i), text, "x") for i, text in enumerate([*chain, "What is $1 + 1$?", *VARIANTS])]
    assert families(problems) == [[0, 1, 2], [3], [4, 5, 6, 7]]
    assert families([]) == []


def test_no_family_of_math_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_ood_1000, "MATH45_EVAL", 30)
    texts = [good_row(i)["problem"] for i in range(146)] + VARIANTS
    rows = [{"problem": text, "level": "Level 5", "answer": str(i)} for i, text in enumerate(texts)]
    inputs = build_ood_1000.Inputs(rows={"math_train": rows, "math_test": []})
    for seed in range(8):
        train, held_out, _ = build_ood_1000.math45(inputs, seed)
        assert (len(train), len(held_out)) == (120, 30)
        assert not find_matches(
            (Problem(r["id"], r["input"], "train") for r in train), (Problem(r["id"], r["input"], "eval") for r in held_out)
        )


def test_the_shortlist_in_its_own_schema_keeps_answers_that_are_no_integers(tmp_path: Path) -> None:
    made_up = {"How many towers has the city?": "86", "What is half of the tower?": "\\frac{1}{2}"}
    rows = [{"problem_idx": i, "source": "x", "problem": problem, "answer": answer, "problem_type": ["C"]}
            for i, (problem, answer) in enumerate(made_up.items())]  # fmt: skip
    hub_download(tmp_path, SOURCES["apex_shortlist"], "data/train-00000-of-00001.parquet", rows)
    inputs = build_ood_1000.load(tmp_path)
    arguments = argparse.Namespace(pool=None, active=None, seed=42)
    made = build_ood_1000.build(arguments, inputs)[0]["apex_shortlist.jsonl"]
    assert [(row["label"], row["integer"]) for row in made] == [("86", True), ("\\frac{1}{2}", False)]
    assert inputs.revisions == {"apex_shortlist": SOURCES["apex_shortlist"].revision}


def test_the_readme_says_what_the_manifests_say(parquet: Path, tmp_path: Path) -> None:
    assert (ROOT / "data" / "README.md").read_text() == readme(tmp_path / "nothing here")
    out = tmp_path / "out"
    assert run([*COMMAND, "--input", parquet, "--output_dir", out]).returncode == 0
    text, manifest = (out / "README.md").read_text(), read_manifest(out / "sft_rl_pool.jsonl")
    assert text == readme(out)
    choices = sum(verdict == "multiple choice" for verdict, _ in ROWS)
    for words in (manifest["sha256"][:12], f"Of {len(ROWS)} rows read", f"| multiple choice | {choices} |", "local file"):
        assert words in text, words
    manifest_of_active = out / "sft_rl_pool_20.meta.json"
    manifest_of_active.write_text("{")
    assert "sft_rl_pool_20.meta.json is damaged" in readme(out)


def test_the_launch_gate_refuses_a_file_that_changed(parquet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run([*COMMAND, "--input", parquet, "--output_dir", out]).returncode == 0
    active, link = out / "sft_rl_pool_20.jsonl", tmp_path / "train_prompts.jsonl"
    link.symlink_to(active)
    check_manifests([link])
    rows = read_lines(active)
    rows[0]["label"] = str(int(rows[0]["label"]) + 1)
    active.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(GateError, match="not the file its manifest describes"):
        check_manifests([link])
