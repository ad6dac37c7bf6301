"""What the preflight finds of software, flags, learning rate and duration, and how it says it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_machine import arguments, host, levels, model, node

from gptoss_rl import doctor
from gptoss_rl.doctor import OK, STOP, UNKNOWN, WARNING, Machine, examine, plan
from gptoss_rl.doctor.plan import (
    check_duration,
    check_flag_combinations,
    check_learning_rate,
    engine_problems,
    least_seconds,
)
from gptoss_rl.doctor.software import check_software, requirements_file
from preflight import look, show

ROOT = Path(__file__).resolve().parent.parent


def test_wrong_versions_and_a_broken_stack_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(levels(check_software(ROOT / "requirements" / "cpu.txt")).values()) == {OK}
    (tmp_path / "x.txt").write_text("torch==0.1.0\npeft==99\n")
    finding = check_software(tmp_path / "x.txt")[1]
    assert finding.level == STOP
    assert "pinned 0.1.0" in finding.seen
    assert "peft" in finding.seen
    from gptoss_rl.stack import apply as patch_stack

    def broken():
        raise patch_stack.PatchStackError("edited by hand")

    monkeypatch.setattr(patch_stack, "check_stack", broken)
    assert check_software(ROOT / "requirements" / "cpu.txt")[0] == doctor.Finding(
        STOP, "patch stack", "edited by hand", "bash apply_patches.sh"
    )


def test_the_requirements_are_those_of_the_device() -> None:
    names = [
        requirements_file(ROOT, arguments(num_devices=n), m).name for n, m in ((None, node()), (2, node()), (None, host()))
    ]
    assert names == ["gpu.txt", "cpu.txt", "cpu.txt"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"lora_rank": 600}, "--lora_rank 600 is larger than vLLM's largest slot (512)"),
        ({"vllm_tensor_parallel_size": 3}, "--vllm_tensor_parallel_size 3 does not divide the model's 8 key-value heads"),
        ({"vllm_tensor_parallel_size": 16}, "--vllm_tensor_parallel_size 16 does not divide"),
    ],
)
def test_bad_flags_stop(changes: dict, words: str) -> None:
    assert check_flag_combinations(complete()) == [doctor.Finding(OK, "flags", "no known-bad combination")]
    (finding,) = check_flag_combinations(complete(**changes))
    assert (finding.level, words in finding.seen) == (STOP, True)


def complete(**changes):
    """The flags of a run that could start."""
    good = {"run_dir": "runs/x", "prompt_data": "x.jsonl", "label_key": "label", "apply_chat_template": True, "zero_stage": 3,
            "attn_implementation": "eager", "advantage_estimator": "dr_grpo", "init_kl_coef": 0.0, "lora_alpha": 64,
            "remote_rm_url": [str(ROOT / "reward_func_em.py")], "micro_train_batch_size": 1,
            "gradient_checkpointing_use_reentrant": True}  # fmt: skip
    return arguments(**{**good, **changes})


def test_the_shards_of_an_engine_are_held_against_the_model_that_it_serves(tmp_path: Path) -> None:
    small = str(model(tmp_path / "small", num_key_value_heads=2))
    assert engine_problems(arguments(vllm_pretrain=small, vllm_tensor_parallel_size=2)) == []
    (problem,) = engine_problems(arguments(vllm_pretrain=small, vllm_tensor_parallel_size=4))
    assert "the model's 2 key-value heads" in problem
    assert engine_problems(arguments(lora_rank=600, vllm_lora_sync="merge")) == []  # merged, there is no slot


def test_the_learning_rate_is_shown_and_judged() -> None:
    good = check_learning_rate(arguments(), 3200)
    assert good.level == OK
    assert "200 global steps, 1600 optimizer steps" in good.seen
    assert good.seen.endswith("over 1.0e-05 to 1.0e-06")
    assert check_learning_rate(arguments(), 0).level == UNKNOWN
    short = check_learning_rate(arguments(), 160)
    assert (short.level, "10 global steps, fewer than 20" in short.seen) == (STOP, True)
    tiny = check_learning_rate(arguments(actor_learning_rate=5e-7), 3200)
    assert (tiny.level, "--actor_learning_rate 1e-5" in tiny.remedy) == (WARNING, True)


def test_the_duration_is_a_measured_one_or_the_least(tmp_path: Path) -> None:
    args = arguments(run_dir=str(tmp_path / "new"))
    assert "without readable data" in check_duration(args, Machine(), 0).seen
    few = check_duration(args, Machine(), 4)
    assert (few.level, few.seen) == (UNKNOWN, "4 prompts make no step (see learning rate)")
    # 128 samples over 4 ranks, one a micro-batch: 32 x 3 passes, and 16 of old logprobs, of 41.8 GB at 25 GB/s each.
    terms = least_seconds(args)
    assert (terms["training"], terms["old logprobs"]) == pytest.approx((32 * 3 * 1.672, 16 * 1.672))
    assert terms["generation"] == pytest.approx(4096 * 6.9 / 933)
    assert "not measured" in check_duration(args, node(), 3200).seen
    assert check_duration(args, node(name="H100"), 3200).level == UNKNOWN
    ran = tmp_path / "earlier"
    ran.mkdir()
    (ran / "summary.json").write_text('{"seconds_per_step": 30.0}')
    (ran / "config.json").write_text(json.dumps({key: vars(args)[key] for key in plan.SAME}))
    assert "200 steps x 30.0 s = 100 min without evaluations" in check_duration(args, node(), 3200).seen
    (ran / "config.json").write_text(json.dumps({key: vars(args)[key] for key in plan.SAME} | {"generate_max_len": 1}))
    assert "30.0 s" not in check_duration(args, node(), 3200).seen


@pytest.mark.parametrize("run", ["command", "launcher"])
def test_a_run_that_would_be_worthless_is_not_started(run: str, tmp_path: Path) -> None:
    flags = ["--prompt_data", str(tmp_path / "no.jsonl"), "--run_dir", str(tmp_path / "run")]
    command = {
        "command": [sys.executable, "preflight.py", "--config", "a30", *flags, "--json"],
        "launcher": ["bash", "train_grpo_20b_a30.sh", *flags],
    }[run]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no.jsonl does not exist. Remedy: make it with filter_numinamath.py" in done.stderr
    assert not (tmp_path / "run").exists()
    if run == "command":
        findings = json.loads(done.stdout)
        assert {"level", "check", "seen", "remedy"} == set(findings[0])
        # What a gate says names its remedy itself.
        assert all(f["remedy"] for f in findings if f["level"] in (STOP, WARNING) and not f["seen"].startswith("[gate"))
    else:
        assert "learning rate" in done.stderr
        assert done.stdout == ""


def test_preflight_can_be_overruled_but_the_gates_stay(tmp_path: Path) -> None:
    flags = ["--prompt_data", str(tmp_path / "no.jsonl"), "--run_dir", str(tmp_path / "run")]
    done = subprocess.run(["bash", "train_grpo_20b_a30.sh", *flags], cwd=ROOT, env={**os.environ, "PREFLIGHT": "0"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "refused: [gate labels]" in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_configuration_is_named() -> None:
    command = [sys.executable, "preflight.py", "--config", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there are 20b, a29b, a30, a31, tiny_cpu" in done.stderr


@pytest.mark.parametrize("words", [[], ["--json"], ["--json", "--run_dir", "runs/x"]])
def test_without_a_configuration_it_asks_for_one(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "preflight.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: --config NAME, or the whole command's flags (at least --pretrain)" in done.stderr


def test_the_help_names_every_configuration() -> None:
    done = subprocess.run([sys.executable, "preflight.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "20b, a29b, a30, a31, tiny_cpu" in " ".join(done.stdout.split())
    assert "as JSON" in done.stdout


TINY = ["--pretrain", "models/none", "--vllm_num_engines", "1", "--advantage_estimator", "dr_grpo", "--remote_rm_url", "x.py",
        "--n_samples_per_prompt", "8"]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "check", "words"),
    [
        (["--n_samples_per_prompt", "1", "--rollout_batch_size", "4"], "flags", "a group of one has no advantage"),
        (["--rollout_batch_size", "0"], "flags", "--rollout_batch_size must be at least 1"),
        (["--micro_train_batch_size", "0"], "flags", "--micro_train_batch_size must be at least 1"),
        (["--micro_rollout_batch_size", "0"], "flags", "--micro_rollout_batch_size must be at least 1"),
        (["--train_batch_size", "0"], "flags", "--train_batch_size must be at least 1"),
        (["--generate_max_len", "0"], "flags", "--generate_max_len must be at least 1"),
        (["--vllm_tensor_parallel_size", "0"], "flags", "--vllm_tensor_parallel_size must be at least 1"),
        (["--lr_scheduler", "foo"], "flags", "--lr_scheduler foo cannot be used"),
        ([], "data", "no --prompt_data is given"),
    ],
)
def test_bad_values_are_findings(flags: list[str], check: str, words: str) -> None:
    found = [finding for finding in look([*TINY, *flags]) if finding.check == check and words in finding.seen]
    assert [finding.level for finding in found] == [STOP]


def test_a_model_that_is_cut_off_stops_once(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    (folder / "config.json").write_text('{"hidden_size": 6')
    found = examine(arguments(pretrain=str(folder), prompt_data=str(tmp_path / "no.jsonl")), node(), ROOT)
    assert len([finding for finding in found if finding.check == "checkpoints" and finding.level == STOP]) == 1


def test_what_a_finding_quotes_is_printed_as_it_stands(capsys: pytest.CaptureFixture) -> None:
    # rich would take the brackets for its markup: it drops the first kind, and raises on the second.
    show([doctor.Finding(STOP, "data", "[gate labels] a[/b]", "[x]")], sys.stdout)
    assert "[gate labels] a[/b]" in (printed := capsys.readouterr().out)
    assert "[x]" in printed


def test_everything_is_looked_at(tmp_path: Path) -> None:
    found = examine(arguments(run_dir=str(tmp_path / "run"), prompt_data=str(tmp_path / "no.jsonl")), node(), ROOT)
    assert {"GPUs", "attention backend", "host memory", "patch stack", "flags", "checkpoints", "data", "learning rate",
            "duration"} <= {f.check for f in found}  # fmt: skip
