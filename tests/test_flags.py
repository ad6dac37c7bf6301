"""Launchers and flags: every launcher's command is parsed by the installed entry point's own parser."""

import os
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from gptoss_rl.doctor.sizes import engine_memory
from gptoss_rl.flags import parse, resolve
from gptoss_rl.run import preflight_lr
from gptoss_rl.run.flag_rules import flag_problems
from gptoss_rl.sync.engine import engine_options, slot_rank
from gptoss_rl.sync.local_engine import engine_arguments

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = [
    "train_grpo_20b.sh",
    "train_grpo_20b_a29b.sh",
    "train_grpo_20b_a30.sh",
    "train_grpo_20b_a31.sh",
    "train_grpo_tiny_cpu.sh",
]


def dry_run(launcher: str, *flags: str) -> list[str]:
    """The words that a launcher would run, after the module's name."""
    done = subprocess.run(
        ["bash", ROOT / launcher, *flags],
        env={**os.environ, "DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = shlex.split(done.stdout)
    return words[words.index("openrlhf.cli.train_ppo_ray") + 1 :]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_parses_with_the_installed_parser(launcher: str) -> None:
    args = parse(dry_run(launcher))
    assert args.advantage_estimator == "dr_grpo"
    assert flag_problems(args) == []


def test_a30_has_its_published_values() -> None:
    args = parse(dry_run("train_grpo_20b_a30.sh"))
    wanted = {
        "actor_learning_rate": 5e-7, "lr_scheduler": "cosine_with_min_lr", "n_samples_per_prompt": 8,
        "rollout_batch_size": 16, "train_batch_size": 16, "micro_train_batch_size": 2, "eps_clip": 0.1,
        "eps_clip_low_high": (0.1, 0.1), "generate_max_len": 4096, "prompt_max_len": 1024, "num_episodes": 1,
        "lora_rank": 32, "lora_alpha": 64, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "vllm_num_engines": 2, "vllm_tensor_parallel_size": 2, "actor_num_gpus_per_node": 4, "zero_stage": 3,
        "offload": True, "adam_offload": True, "vllm_lora_sync": "adapter", "init_kl_coef": 0.0,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in wanted} == wanted


def test_a29b_differs_from_a30_in_its_micro_batch_alone() -> None:
    a29b, a30 = (vars(parse(dry_run(f"train_grpo_20b_{name}.sh"))) for name in ("a29b", "a30"))
    differing = {key for key in a30 if a30[key] != a29b[key]} - {"run_dir"}
    assert differing == {"micro_train_batch_size"}
    assert a29b["micro_train_batch_size"] == 1


def test_a31_differs_from_a30_in_what_its_head_says() -> None:
    a30, a31 = (vars(parse(dry_run(f"train_grpo_20b_{name}.sh"))) for name in ("a30", "a31"))
    differing = {key: a31[key] for key in a30 if a30[key] != a31[key] and key != "run_dir"}
    assert differing == {
        "actor_learning_rate": 1e-5, "zero_variance": "skip", "is_correction": "tis",
    }  # fmt: skip
    assert (a31["loss_normalizer"], a31["micro_batch_order"], a31["vllm_lora_sync"]) == ("constant", "length", "adapter")


@pytest.mark.parametrize(
    ("launcher", "called"),
    [("train_grpo_20b_a29b.sh", "20b"), ("train_grpo_20b_a30.sh", "20b_a29b"), ("train_grpo_20b_a31.sh", "20b_a30")],
)
def test_a_variant_repeats_nothing_of_what_it_calls(launcher: str, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_NAME", "x")
    words, before = dry_run(launcher), dry_run(f"train_grpo_{called}.sh")
    assert words[: len(before)] == before
    starts = [i for i in range(len(before), len(words)) if words[i].startswith("--")]
    for start, end in pairwise([*starts, len(words)]):
        assert parse(words) != parse(words[:start] + words[end:]), f"{launcher}: {words[start]} changes nothing"


def test_the_base_launchers_memory_is_what_preflight_says() -> None:
    weights = engine_memory(parse(dry_run("train_grpo_20b.sh")))["weights"]
    assert f"an engine card holds {weights:.1f} GB of weights" in (ROOT / "train_grpo_20b.sh").read_text()


def test_refill_means_bounded_dynamic_filtering() -> None:
    args = resolve(parse(dry_run("train_grpo_20b_a30.sh", "--zero_variance", "refill")))
    assert (args.dynamic_filtering, args.refill_max_prompts) == (True, 64)
    assert not resolve(parse(dry_run("train_grpo_20b_a30.sh"))).dynamic_filtering


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_last_flag_wins(launcher: str) -> None:
    args = parse(dry_run(launcher, "--lora_rank", "4", "--no_offload", "--no_gradient_checkpointing", "--seed", "9"))
    assert (args.lora_rank, args.offload, args.gradient_checkpointing, args.seed) == (4, False, False, 9)


def test_a_flag_with_a_typo_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(["--lora_ran", "4"])  # argparse would take it for --lora_rank
    assert "--lora_ran" in capsys.readouterr().err


def test_the_run_directory_holds_checkpoints_and_adapter() -> None:
    args = resolve(parse(["--run_dir", "runs/x", "--vllm_num_engines", "1", "--remote_rm_url", "r.py"]))
    assert (args.ckpt_path, args.save_path) == ("runs/x/checkpoints", "runs/x/adapter")


def test_engine_options_reach_vllm() -> None:
    args = engine_arguments(lora_rank=5, vllm_max_num_seqs=7, vllm_max_cudagraph_capture_size=64, vllm_kv_cache_dtype="fp8")
    options = engine_options(args)
    assert (options["enable_lora"], options["max_loras"], options["max_lora_rank"]) == (True, 1, 8)
    assert (options["max_num_seqs"], options["max_cudagraph_capture_size"]) == (7, 64)
    assert options["kv_cache_dtype"] == "fp8"
    assert "max_num_batched_tokens" not in options
    merged = engine_options(engine_arguments(lora_rank=5, vllm_lora_sync="merge"))
    assert "enable_lora" not in merged
    assert merged["additional_config"] == {"gptoss_rl_merge": True}


def test_every_engine_option_is_one_that_vllm_takes() -> None:
    import dataclasses

    import vllm

    taken = {field.name for field in dataclasses.fields(vllm.AsyncEngineArgs)} | {"reward_timeout"}
    args = engine_arguments(
        lora_rank=5, vllm_max_num_seqs=7, vllm_max_num_batched_tokens=9, vllm_max_cudagraph_capture_size=64,
        vllm_kv_cache_dtype="fp8", vllm_executor_backend="mp",
    )  # fmt: skip
    assert set(engine_options(args)) <= taken


def test_slots_are_vllms() -> None:
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert [slot_rank(rank) for rank in get_args(MaxLoRARanks)] == sorted(get_args(MaxLoRARanks))
    assert slot_rank(9) == 16
    with pytest.raises(ValueError, match="513"):
        slot_rank(513)


def preflight(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", ROOT / "preflight_lr.sh", *arguments], capture_output=True, text=True, check=False)


def test_preflight_shows_the_schedule_of_a_launcher() -> None:
    done = preflight("train_grpo_20b_a30.sh", "--num_prompts", "3200")
    assert done.returncode == 0, done.stderr
    assert "200 global steps x 8 = 1600 optimizer steps" in done.stdout
    assert "5.000e-07" in done.stdout
    assert "5.000e-08" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_prompts", "160"], "10 global steps, fewer than 20"),
        (["--num_prompts", "3200", "--lr_warmup_ratio", "0.5"], "warm-up takes 800 of 1600"),
        (["--num_prompts", "3200", "--train_batch_size", "48"], "not a multiple of --train_batch_size"),
        (["--num_prompts", "3200", "--train_batch_size", "4"], "not a multiple of --micro_train_batch_size"),
        (["--num_prompts", "8"], "less than one batch"),
        (["--num_prompts", "-5"], "--num_prompts -5 must be at least 1"),
        (["--num_prompts", "3200", "--lr_scheduler", "foo"], "--lr_scheduler foo cannot be used"),
        (["--num_prompts", "3200", "--actor_learning_rate", "-1"], "--actor_learning_rate must be above 0"),
        (["--num_prompts", "3200", "--micro_train_batch_size", "0"], "--micro_train_batch_size must be at least 1"),
        (["--num_prompts", "3200", "--micro_rollout_batch_size", "0"], "--micro_rollout_batch_size must be at least 1"),
        (["--prompt_data", "data"], "--prompt_data data is a folder, not a file; make it, or pass --num_prompts"),
        (["--num_prompts", "3200", "--lr_warmup_ratio", "1.0"], "warm-up takes 1600 of 1600"),
        (["--num_prompts", "3200", "--lr_warmup_ratio", "1.5"], "never reaches its peak of 5e-07"),
    ],
)
def test_preflight_refuses_a_run_that_would_not_train_as_it_says(flags: list[str], words: str) -> None:
    # In this process: what the script adds to it, the tests around this one see.
    with pytest.raises(SystemExit, match=re.escape(words)):
        preflight_lr.main(dry_run("train_grpo_20b_a30.sh", *flags))


def test_preflight_names_a_data_file_that_is_missing() -> None:
    done = preflight("train_grpo_20b_a30.sh", "--prompt_data", "data/none.jsonl")
    assert done.returncode != 0
    assert "data/none.jsonl does not exist" in done.stderr


@pytest.mark.parametrize("word", ["LICENSE", "gptoss_rl/../train_grpo_20b.sh", "setup_env.sh", "train_grpo_20b_none.sh"])
def test_preflight_executes_nothing_but_a_launcher(word: str) -> None:
    done = preflight(word, "--num_prompts", "3200")
    assert done.returncode == 2
    assert "usage: bash preflight_lr.sh train_grpo_NAME.sh" in done.stderr
    assert "train_grpo_20b_a31.sh" in done.stderr
