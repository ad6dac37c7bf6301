"""The README's evaluation commands, typed as they stand against the tiny model and a finished run."""

import json
import shutil
from pathlib import Path

import pytest
from readme import block, typed
from workplace import Workplace

SHORT = "--max_tokens 24 --reasoning_effort low"


@pytest.fixture
def work(tiny: Path, finished_run: Path, readme_data: Path, tmp_path: Path) -> Workplace:
    """A copy of the repository with data, models, a run, and the run's adapter merged."""
    work = Workplace(tmp_path / "gptoss-rl")
    shutil.copytree(readme_data, work.folder / "data", dirs_exist_ok=True)
    (work.folder / "models").mkdir()
    # The CPU's engine has no MXFP4; the last is the name in the run's flags.
    for name in ("gpt-oss-20b", "gpt-oss-20b-bf16", "tiny-gptoss"):
        (work.folder / "models" / name).symlink_to(tiny)
    shutil.copytree(finished_run, work.folder / "runs" / "NAME")
    work.must(typed("python merge_lora.py --base models/gpt-oss-20b-bf16 --adapter runs/NAME/adapter --output merged"))
    return work


@pytest.mark.e2e(seconds=120)
def test_models_and_adapters_are_evaluated_and_compared(work: Workplace) -> None:
    merged, adapter, _, _, _ = block("Evaluation")
    assert "tier stability" in work.must(merged, f"--limit 120 {SHORT}")
    records = work.folder / "evals" / "probe_set_1000_ood" / "merged.jsonl"
    assert len({json.loads(line)["id"] for line in records.read_text().splitlines()}) == 120
    assert json.loads(records.with_suffix(".summary.json").read_text())["n"] == 120
    assert "rl (B) against gpt-oss-20b (A): " in work.must(adapter, f"--limit 120 {SHORT}")
    for name, source in (("A", "gpt-oss-20b"), ("B", "rl")):
        for suffix in (".jsonl", ".identity.json"):
            made = work.folder / "evals" / "probe_set_1000_ood" / f"{source}{suffix}"
            shutil.copyfile(made, work.folder / f"{name}{suffix}")
    assert "tier: stability" in work.must(typed("python -m gptoss_rl.stats compare A.jsonl B.jsonl"))


@pytest.mark.e2e(seconds=200)
def test_a_run_is_checked_and_a_model_measured(work: Workplace) -> None:
    _, _, regression, baseline, apex = block("Evaluation")
    # In training and post hoc agree problem by problem, as an adapter and, up to what rounding takes, merged.
    said = work.must(regression)
    assert "40 problems: 40 responses equal to the token; verdicts differ on 0" in said
    assert "in-training and post-hoc evaluation agree" in said
    assert "agree" in work.must(regression, "--merged merged --tolerance 1")
    assert "recommended for training" in work.must(baseline, f"--limit 6 --n_samples 2 {SHORT} --auto-symlink")
    assert (work.folder / "data" / "train_prompts.jsonl").is_symlink()
    assert "2 problems x 16 samples" in work.must(apex, SHORT)
