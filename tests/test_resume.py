"""--load_checkpoint goes on with the run whose files it finds, and refuses to make another one of it."""

import json
from pathlib import Path

import pytest
from made_run import make_run

from gptoss_rl.errors import GateError
from gptoss_rl.evaluation import EvaluationError, load_evaluation
from gptoss_rl.flags import parse
from gptoss_rl.run.launch import prepare
from gptoss_rl.run.resume import MAY_CHANGE, lives
from gptoss_rl.run.summary import SummaryError, summarise

FLAGS = {
    "pretrain": "models/x", "remote_rm_url": "reward_func_em.py", "advantage_estimator": "dr_grpo", "init_kl_coef": 0,
    "attn_implementation": "eager", "lora_rank": 8, "lora_alpha": 16, "actor_num_gpus_per_node": 1, "vllm_num_engines": 1,
    "rollout_batch_size": 4, "n_samples_per_prompt": 4, "train_batch_size": 16, "micro_train_batch_size": 8,
    "micro_rollout_batch_size": 8, "actor_learning_rate": 1e-5, "generate_max_len": 64, "reasoning_effort": "low",
    "lr_warmup_ratio": 0, "label_key": "label", "eval_steps": 2, "zero_stage": 3,
}  # fmt: skip


def command(folder: Path, **changes: object) -> list[str]:
    """A command line for the run in `folder`, with the data that lie there."""
    data = {"prompt_data": folder / "train.jsonl", "eval_dataset": folder / "eval.jsonl", "run_dir": folder / "run"}
    words = [str(word) for name, value in {**FLAGS, **data, **changes}.items() for word in (f"--{name}", value)]
    return [*words, "--target_modules", "q_proj", "k_proj", "v_proj", "o_proj", "--apply_chat_template", "--allow_short"]


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder with data and, under run/, a run of one life that has written a checkpoint."""
    for name, sign in (("train", "+"), ("eval", "-")):
        rows = [{"input": f"What is {i} {sign} {7 * i}?", "label": i} for i in range(16)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    latest = prepare(command(tmp_path)) / "checkpoints" / "_actor" / "latest"
    latest.parent.mkdir(parents=True)
    latest.write_text("global_step2")
    return tmp_path


def test_the_same_run_is_resumed_however_often(begun: Path) -> None:
    for life in range(2, 13):
        prepare([*command(begun), "--load_checkpoint"])
        assert len(lives(begun / "run")) == life
    # The twelfth life is compared with the eleventh, not with the one whose name sorts last.
    assert lives(begun / "run")[-1] == json.loads((begun / "run" / "config.resume11.json").read_text())


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("lora_alpha", 32, "lora_alpha 16 -> 32"),
        ("pretrain", "models/y", "pretrain models/x -> models/y"),
        ("reasoning_effort", "high", "reasoning_effort low -> high"),
        ("generate_max_len", 128, "generate_max_len 64 -> 128"),
        ("actor_learning_rate", 1e-6, "actor_learning_rate 1e-05 -> 1e-06"),
        ("max_samples", 12, "max_samples 100000000.0 -> 12"),
        ("ckpt_path", "elsewhere", "elsewhere holds no checkpoint"),
    ],
)
def test_another_run_is_refused_by_flag(begun: Path, name: str, value: object, shown: str) -> None:
    with pytest.raises(GateError, match="gate flags") as caught:
        prepare([*command(begun, **{name: value}), "--load_checkpoint"])
    assert shown in str(caught.value)
    assert len(lives(begun / "run")) == 1


def test_every_change_is_named_at_once(begun: Path) -> None:
    with pytest.raises(GateError, match="lora_alpha 16 -> 32; seed 42 -> 43"):
        prepare([*command(begun, lora_alpha=32, seed=43), "--load_checkpoint"])


@pytest.mark.parametrize("name", ["train", "eval"])
def test_other_data_under_the_same_name_are_refused(begun: Path, name: str) -> None:
    path = begun / f"{name}.jsonl"
    path.write_text(path.read_text().replace('"label": 3', '"label": 4'))
    with pytest.raises(GateError, match="(prompt_data|eval_dataset)_sha256"):
        prepare([*command(begun), "--load_checkpoint"])


def test_a_run_that_was_moved_with_its_data_is_resumed(begun: Path) -> None:
    moved = begun.rename(begun.with_name("moved"))
    prepare([*command(moved), "--load_checkpoint"])


def test_limits_intervals_and_memory_may_change(begun: Path) -> None:
    free = {"max_mismatch_kl": 0.1, "eval_steps": 4, "save_steps": 1, "micro_batch_max_tokens": 512, "vllm_num_engines": 2}
    prepare([*command(begun, **free), "--load_checkpoint"])


def test_what_may_change_is_a_flag() -> None:
    assert MAY_CHANGE - vars(parse(command(Path("x")))).keys() == set()


def test_nothing_is_resumed_without_a_record_of_what_it_was(begun: Path) -> None:
    (begun / "run" / "config.json").unlink()
    with pytest.raises(GateError, match="has no config.json"):
        prepare([*command(begun), "--load_checkpoint"])


def test_a_run_that_was_resumed_as_another_has_no_before_and_after(tmp_path: Path) -> None:
    # Past the launcher, by calling OpenRLHF alone or by hand.
    run = make_run(tmp_path / "run", 20)
    config = json.loads((run / "config.json").read_text())
    config |= {"eval_temperature": 0.0, "eval_n_samples_per_prompt": 1, "generate_max_len": 64, "prompt_fingerprint": "a"}
    (run / "config.json").write_text(json.dumps({**config, "reasoning_effort": "low"}))
    assert summarise(run)["n"] == 200
    assert load_evaluation(run / "eval.jsonl").decoding["reasoning_effort"] == "low"
    (run / "config.resume1.json").write_text(json.dumps({**config, "reasoning_effort": "high"}))
    with pytest.raises(SummaryError, match="reasoning_effort low -> high"):
        summarise(run)
    with pytest.raises(EvaluationError, match="resumed with another decoding"):
        load_evaluation(run / "eval.jsonl")
