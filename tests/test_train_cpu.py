"""Whole runs through the launcher: patched OpenRLHF, Ray, DeepSpeed ZeRO-3 and vLLM on the tiny gpt-oss."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from deaths import die, marked
from safetensors.torch import load_file, save_file
from tiny_run import ROOT, lines, run

from gptoss_rl.metrics import METRICS
from gptoss_rl.run.directory import check_unoccupied, set_failed_start_aside
from gptoss_rl.sync.local_engine import engine_arguments


def assert_trackers_have_the_metrics(run_dir: Path) -> None:
    """TensorBoard and Weights & Biases (offline) got every key and value of metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    wanted = {f"train/{key}": value for key, value in lines(run_dir, "metrics")[-1].items() if key not in ("step", "time")}
    events = EventAccumulator(str(run_dir / "tensorboard" / "x")).Reload()
    assert set(wanted) <= set(events.Tags()["scalars"])
    for key, value in wanted.items():
        assert events.Scalars(key)[-1].value == pytest.approx(value, nan_ok=True), key

    (offline,) = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    store, logged = DataStore(), {}
    store.open_for_scan(str(offline))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        logged |= {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
    assert set(wanted) <= set(logged)
    assert json.loads(logged["train/reward/mean"]) == pytest.approx(wanted["train/reward/mean"])


@pytest.mark.e2e(seconds=120)
def test_tiny_run_goes_end_to_end(finished_run: Path, eval_file: Path) -> None:
    run_dir, steps = finished_run, 4
    assert_trackers_have_the_metrics(run_dir)

    metrics = lines(run_dir, "metrics")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    assert {key for m in metrics for key in m} - {"step", "time"} <= set(METRICS)
    assert all((m["optimizer/gradient_norm"] > 0) == (m["advantage/std"] > 0) for m in metrics)
    assert all(m["optimizer/steps"] == 1 for m in metrics)
    # Exactly on-policy, so there is no old policy to recompute; groups without variance are left out.
    assert all(m["ratio/log_ratio_max"] == 0 for m in metrics)
    dead = [m["reward/all_right"] + m["reward/all_wrong"] for m in metrics]
    assert [m["batch/skipped"] for m in metrics] == pytest.approx(dead)
    assert all(m["parity/abs_diff_mean"] < 0.05 for m in metrics)
    assert all(m["rollout/samples"] == 16 for m in metrics)

    # Start, canary and its undoing, then one sync a step; no version is used twice.
    syncs = lines(run_dir, "sync")
    assert [s["policy_version"] for s in syncs] == list(range(1, 3 + steps + 1))
    assert [m["rollout/policy_version"] for m in metrics] == [3, 4, 5, 6]
    assert syncs[0]["sha256"] == syncs[2]["sha256"] != syncs[1]["sha256"]
    changed = [s["sha256"] for s in syncs[2:]]
    # A step whose groups have no variance has no gradient; Adam then moves on by its momentum alone.
    assert any(m["advantage/std"] > 0 for m in metrics)
    assert len(set(changed)) > 1, "no step changed the adapter"

    evaluations = lines(run_dir, "eval")
    assert sorted({e["step"] for e in evaluations}) == [0, steps]
    per_step = [{e["id"] for e in evaluations if e["step"] == s} for s in (0, steps)]
    assert per_step[0] == per_step[1]
    assert len(per_step[0]) == 40 == len(evaluations) // 2

    summary = json.loads((run_dir / "summary.json").read_text())
    wanted = {
        "pass_at_1_before",
        "pass_at_1_after",
        "n",
        "p_value",
        "global_steps",
        "seconds_per_step",
        "sync_seconds",
    }
    assert wanted <= set(summary)
    assert (summary["n"], summary["global_steps"]) == (40, steps)
    assert "greedy pass@1 after" in (run_dir / "printed.txt").read_text()
    for name in ("command.txt", "config.json", "environment.json", "train.log", "samples.jsonl", "report.html"):
        assert (run_dir / name).stat().st_size > 0, name
    assert {p.name for p in (run_dir / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    # What was saved is what was last synced: B has moved away from zero.
    adapter = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    assert all(t.abs().max() > 0 for t in adapter.values())
    checkpoint = run_dir / "checkpoints" / "_actor"
    assert (checkpoint / "latest").read_text() == "global_step4"
    size = sum(p.stat().st_size for p in checkpoint.rglob("*") if p.is_file())
    assert size < 20 * sum(t.numel() * 4 for t in adapter.values()), "the checkpoint holds frozen weights"

    canary = json.loads((run_dir / "canary.json").read_text())
    assert canary["correlation"] > 0.9
    assert canary["prompt_abs_diff_mean"] < 0.1


@pytest.mark.e2e(seconds=100)
def test_an_engine_with_two_shards_in_bf16(eval_file: Path, tmp_path: Path) -> None:
    # Also: the sampler's logprobs instead of a recomputing pass, corrected, and refilled groups.
    flags = ["--vllm_tensor_parallel_size", "2", "--num_devices", "3", "--param_dtype", "bf16", "--train_batch_size", "8"]
    flags += ["--old_logprobs", "rollout", "--is_correction", "tis", "--zero_variance", "refill", "--max_samples", "64"]
    done = run(tmp_path / "run", eval_file, 2, *flags)
    assert done.returncode == 0, done.output[-6000:]
    assert {(s["engines"], s["workers"]) for s in lines(tmp_path / "run", "sync")} == {(1, 2)}
    metrics = lines(tmp_path / "run", "metrics")
    assert [m["step"] for m in metrics] == list(range(1, len(metrics) + 1))
    assert all(m["optimizer/steps"] == 2 for m in metrics)
    # 64 prompts, at least 4 and at most 16 of them a step.
    assert 4 <= len(metrics) <= 16
    kept = [m["rollout/kept_groups"] for m in metrics]
    assert 25 <= min(kept) < 100, kept
    assert max(kept) <= 100, kept
    shares = [m["mismatch/ess"] for m in metrics]
    assert 0 < min(shares) <= max(shares) <= 1, shares


REWARD_THAT_BREAKS = """
import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("grader", "{grader}")
grader = importlib.util.module_from_spec(spec)
spec.loader.exec_module(grader)


def reward_func(queries, prompts, labels):
    evaluations = Path("{evaluations}")
    if evaluations.exists() and '"step": 2' in evaluations.read_text():
        raise KeyError("the grader is broken")
    return grader.reward_func(queries, prompts, labels)
"""


@pytest.mark.e2e(seconds=80)
def test_two_engines_in_merge_mode_and_a_reward_that_raises_in_step_three(eval_file: Path, tmp_path: Path) -> None:
    # Also: upstream's own loss.
    run_dir, reward = tmp_path / "run", tmp_path / "reward.py"
    reward.write_text(REWARD_THAT_BREAKS.format(grader=ROOT / "reward_func_em.py", evaluations=run_dir / "eval.jsonl"))
    flags = ["--vllm_num_engines", "2", "--num_devices", "3", "--vllm_lora_sync", "merge", "--remote_rm_url", str(reward)]
    flags += ["--loss_normalizer", "token_mean", "--zero_variance", "keep", "--save_steps", "1", "--eval_steps", "1"]
    done = run(run_dir, eval_file, 4, *flags)
    assert done.returncode != 0
    assert "[gate reward] the reward function raised KeyError: 'the grader is broken' for prompt " in done.output
    assert [m["step"] for m in lines(run_dir, "metrics")] == [1, 2]
    assert Counter(e["step"] for e in lines(run_dir, "eval")) == dict.fromkeys((0, 1, 2), 40)
    assert (run_dir / "checkpoints" / "_actor" / "latest").read_text() == "global_step2"
    syncs = lines(run_dir, "sync")
    assert {(s["engines"], s["workers"], s["mode"]) for s in syncs} == {(2, 2, "merge")}
    # The start syncs an adapter whose B is zero, so nothing can be lost; later ones say what rounding took.
    assert syncs[0]["dead_zone_share"] == 0.0
    assert len(syncs) == 5
    assert all(0 < s["dead_zone_share"] < 1 for s in syncs[3:])


@pytest.mark.e2e(seconds=130)
def test_a_run_resumes_where_it_stopped(eval_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # Also: two optimizer steps a rollout batch, so with a pass for old logprobs, and KL to the base inside the policy.
    flags = ["--save_steps", "2", "--eval_steps", "2", "--canary_prompts", "0", "--train_batch_size", "8"]
    flags += ["--init_kl_coef", "0.01", "--zero_variance", "keep"]
    killed = die("driver", "step 3", run_dir, eval_file, *flags, steps=6)
    assert killed.status != 0
    assert "[gate parts] the driver was ended by SIGKILL" in killed.sentence
    assert killed.processes == []  # nobody was left to end them but the launcher
    before = lines(run_dir, "metrics")
    assert len(before) >= 3, "the run did not get to step 3"
    latest = int((run_dir / "checkpoints" / "_actor" / "latest").read_text().removeprefix("global_step"))
    saved = load_file(run_dir / "checkpoints" / "_actor" / f"global_step{latest}" / "adapter" / "adapter_model.safetensors")

    done = run(run_dir, eval_file, 6, *flags, "--load_checkpoint")
    assert done.returncode == 0, done.output[-6000:]
    after = lines(run_dir, "metrics")
    assert [m["step"] for m in after] == [1, 2, 3, 4, 5, 6]
    assert after[:latest] == before[:latest]
    assert all(m["optimizer/steps"] == 2 for m in after)
    assert after[0]["ratio/log_ratio_max"] > 0  # the second optimizer step starts from another policy
    assert after[-1]["policy/kl_to_base"] > 0
    syncs = {s["policy_version"]: s for s in lines(run_dir, "sync")}
    # The first sync after resuming brings the saved adapter, under a version that was never used.
    resumed = min(v for v, s in syncs.items() if s["step"] == latest and v > latest + 1)
    assert syncs[resumed]["sha256"] == syncs[latest + 1]["sha256"]
    assert len(saved) == syncs[resumed]["modules"] * 2
    prompts = [s["id"] for s in lines(run_dir, "samples")]
    assert len(set(prompts)) == len(prompts) // 2, "a prompt was drawn twice, or one was left out"
    assert Counter(e["step"] for e in lines(run_dir, "eval")) == dict.fromkeys((0, 2, 4, 6), 40)


@pytest.mark.e2e(seconds=65)
def test_a_trainer_without_sinks_is_stopped_before_step_one(
    tiny: Path, eval_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What an attention kernel without sinks computes: a sink of -10,000 takes no attention.
    blind = shutil.copytree(tiny, tmp_path / "blind")
    weights = load_file(blind / "model.safetensors")
    changed = {name: torch.full_like(t, -1e4) if name.endswith("sinks") else t for name, t in weights.items()}
    assert sum(name.endswith("sinks") for name in weights) > 0
    save_file(changed, blind / "model.safetensors", metadata={"format": "pt"})
    # In a file the preflight sees it; the parity gate must see it where no file tells, in what a kernel computes.
    monkeypatch.setenv("PREFLIGHT", "0")
    run_dir = tmp_path / "run"
    done = run(run_dir, eval_file, 2, "--pretrain", str(blind))
    assert done.returncode != 0
    assert "sinks: not one base. Remedy:" in done.output, done.output[-6000:]
    last = done.output.strip().splitlines()[-1]
    assert re.match(r"the run was stopped: \[gate parity\] before step 1: .* on prompt tokens, .*without sinks", last)
    assert lines(run_dir, "metrics") == []
    # Nothing of it is in the way of the next start, and what it said is kept.
    assert marked(done.launcher) == {}
    check_unoccupied(engine_arguments(run_dir=str(run_dir)))
    assert "[gate parity]" in (set_failed_start_aside(run_dir) / "train.log").read_text()


@pytest.mark.e2e(seconds=70)
def test_a_sampler_that_drifts_stops_the_run_with_a_checkpoint(eval_file: Path, tmp_path: Path) -> None:
    # No sampler is this exact, so two steps on end are above the limit; groups without variance count too, so that no
    # step is without tokens.
    limit = ["--max_mismatch_kl", "1e-12", "--mismatch_patience", "2", "--canary_prompts", "0", "--zero_variance", "keep"]
    done = run(tmp_path / "run", eval_file, 4, *limit)
    assert done.returncode != 0
    assert re.search(r"\[gate mismatch\] step 2: .*above 1e-12 \(--max_mismatch_kl\)", done.output), done.output[-6000:]
    assert [m["step"] for m in lines(tmp_path / "run", "metrics")] == [1, 2]
    assert (tmp_path / "run" / "checkpoints" / "_actor" / "latest").read_text() == "global_step2"
    report = (tmp_path / "run" / "report.html").read_text()
    assert "[gate mismatch] step 2" in report
    assert "stopped, step 2" in report
