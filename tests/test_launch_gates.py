"""Gates that close before anything is started: each known-wrong flag and each bad row, by name."""

import argparse
import json
from pathlib import Path

import pytest

from gptoss_rl.errors import GateError
from gptoss_rl.run import flag_rules
from gptoss_rl.run.flag_rules import COUNTS, flag_problems, read_flags
from gptoss_rl.run.launch_gates import (
    check_disjoint,
    check_flags,
    check_labels,
    check_launch,
    check_length,
    read_prompts,
)
from gptoss_rl.sync.cluster import devices_needed
from gptoss_rl.sync.local_engine import engine_arguments

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    train, evaluation = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text("".join(json.dumps({"input": f"{i} + 1?", "label": str(i + 1)}) + "\n" for i in range(32)))
    evaluation.write_text("".join(json.dumps({"input": f"{i} - 1?", "label": i - 1}) + "\n" for i in range(8)))
    return train, evaluation


def arguments(files: tuple[Path, Path], **changes) -> argparse.Namespace:
    good = {
        "run_dir": "runs/x", "prompt_data": str(files[0]), "eval_dataset": str(files[1]), "label_key": "label",
        "apply_chat_template": True, "lora_rank": 8, "attn_implementation": "eager", "advantage_estimator": "dr_grpo",
        "init_kl_coef": 0.0, "n_samples_per_prompt": 4, "rollout_batch_size": 8, "train_batch_size": 32,
        "micro_train_batch_size": 8, "micro_rollout_batch_size": 8, "actor_num_gpus_per_node": 1, "allow_short": True,
        "lr_warmup_ratio": 0.0, "zero_stage": 3, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "remote_rm_url": [str(ROOT / "reward_func_em.py")],
    }  # fmt: skip
    return engine_arguments(**{**good, **changes})


def test_good_flags_and_data_pass(files) -> None:
    check_launch(arguments(files))
    refill = arguments(files, loss_normalizer="token_mean", zero_variance="refill", lr_scheduler="constant_with_warmup")
    check_launch(refill)
    check_launch(refill)  # the launcher and the entry point both check; the flags are resolved in between
    check_launch(arguments(files, init_kl_coef=0.01))
    check_launch(arguments(files, old_logprobs="rollout", is_correction="tis", zero_variance="skip"))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"run_dir": None}, "--run_dir"),
        ({"lora_rank": 0}, "--lora_rank"),
        ({"lora_alpha": 0}, "--lora_alpha must be above 0"),
        ({"target_modules": "all-linear"}, "--target_modules all-linear: the engines serve"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "experts"]}, "--target_modules"),
        ({"target_modules": ["q_proj"]}, "--target_modules q_proj"),
        ({"target_modules": []}, "--target_modules"),
        ({"zero_stage": 2}, "--zero_stage 2"),
        ({"deepspeed_enable_sleep": True}, "--deepspeed_enable_sleep"),
        ({"vllm_gpu_memory_utilization": 1.5}, "--vllm_gpu_memory_utilization"),
        ({"vllm_gpu_memory_utilization": 0.0}, "--vllm_gpu_memory_utilization"),
        ({"actor_learning_rate": 0.0}, "--actor_learning_rate must be above 0"),
        ({"actor_learning_rate": float("nan")}, "--actor_learning_rate must be above 0"),
        ({"lr_scheduler": "foo"}, "--lr_scheduler foo cannot be used (foo is not a valid"),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "--lr_scheduler reduce_lr_on_plateau cannot be used"),
        ({"remote_rm_url": ["nofile.py"]}, "--remote_rm_url nofile.py does not exist"),
        ({"max_samples": 0}, "--max_samples must be at least 1"),
        ({"lora_dropout": 0.1}, "--lora_dropout"),
        ({"attn_implementation": "flash_attention_2"}, "--attn_implementation flash_attention_2"),
        ({"packing_samples": True}, "--packing_samples"),
        ({"use_dynamic_batch": True}, "--use_dynamic_batch"),
        ({"ring_attn_size": 2}, "--ring_attn_size"),
        ({"ds_tensor_parallel_size": 2}, "--ds_tensor_parallel_size"),
        ({"load_in_4bit": True}, "--load_in_4bit"),
        ({"param_dtype": "fp16"}, "--param_dtype"),
        ({"use_liger_kernel": True}, "--use_liger_kernel"),
        ({"aux_loss_coef": 0.1}, "--aux_loss_coef"),
        ({"gradient_checkpointing": True}, "--gradient_checkpointing_use_reentrant"),
        ({"async_train": True}, "--async_train"),
        ({"colocate_all_models": True}, "--colocate_all_models"),
        ({"enable_ema": True}, "--enable_ema"),
        ({"advantage_estimator": "group_norm"}, "--advantage_estimator"),
        ({"init_kl_coef": 0.01, "loss_normalizer": "token_mean"}, "--init_kl_coef above 0 needs --loss_normalizer constant"),
        ({"init_kl_coef": 0.01, "zero_variance": "skip"}, "--init_kl_coef above 0 needs --zero_variance keep"),
        ({"entropy_loss_coef": 0.01, "zero_variance": "skip"}, "--entropy_loss_coef needs --zero_variance keep"),
        ({"zero_variance": "skip", "loss_normalizer": "token_mean"}, "--zero_variance skip changes the gradient"),
        ({"is_correction": "tis", "loss_normalizer": "token_mean"}, "--is_correction needs"),
        ({"old_logprobs": "rollout", "is_correction": "tis", "loss_normalizer": "token_mean"}, "--old_logprobs rollout needs"),
        ({"old_logprobs": "rollout"}, "--old_logprobs rollout needs --is_correction"),
        ({"enable_vllm_is_correction": True}, "use --is_correction"),
        ({"dual_clip": 3.0}, "--dual_clip"),
        ({"max_epochs": 2}, "--max_epochs"),
        ({"freezing_actor_steps": 3}, "--freezing_actor_steps"),
        ({"overlong_buffer_len": 100}, "--overlong_buffer_len"),
        ({"dynamic_filtering": True}, "--zero_variance refill"),
        ({"remote_rm_url": None}, "--remote_rm_url"),
        ({"n_samples_per_prompt": 1, "train_batch_size": 8}, "--n_samples_per_prompt"),
        ({"train_batch_size": 24}, "not a multiple of --train_batch_size"),
        ({"micro_train_batch_size": 5}, "--micro_train_batch_size"),
        ({"actor_num_gpus_per_node": 3}, "dealt evenly"),
        ({"temperature": 0.0}, "--temperature"),
        ({"top_p": 0.9}, "--top_p"),
        ({"apply_chat_template": False}, "--apply_chat_template"),
        ({"vllm_num_engines": 0}, "--vllm_num_engines"),
        ({"use_wandb": "0123456789" * 4}, "wandb login"),
        ({"label_key": None}, "--label_key"),
        ({"agent_func_path": "agent.py"}, "--agent_func_path"),
        ({"input_template": "Q: {}"}, "--input_template"),
        ({"prompt_split": "test"}, "--prompt_split"),
        ({"max_len": 1500}, "--max_len"),
        ({"normalize_reward": True}, "--normalize_reward"),
        ({"use_kl_loss": True}, "--use_kl_loss"),
        ({"kl_target": 0.1}, "--kl_target"),
        ({"eval_n_samples_per_prompt": 4, "eval_temperature": 0.0}, "--eval_n_samples_per_prompt"),
        ({"is_correction": "tis", "is_weight_high": 0.0}, "--is_weight_high 0 must lie on both sides of 1"),
        ({"is_correction": "icepop", "is_weight_low": 2.0}, "--is_weight_low 2 "),
        ({"num_devices": 5, "actor_num_gpus_per_node": 4}, "more than one actor rank"),
    ],
)
def test_every_forbidden_flag_is_refused_by_name(files, change: dict, word: str) -> None:
    assert flag_problems(arguments(files)) == []
    with pytest.raises(GateError, match="gate flags") as caught:
        check_flags(arguments(files, **change))
    assert word in str(caught.value)


@pytest.mark.parametrize("flag", [*COUNTS, "n_samples_per_prompt"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_refused_by_name_and_divides_nothing(files, flag: str, value: int) -> None:
    with pytest.raises(GateError, match=f"--{flag} must be at least"):
        check_flags(arguments(files, **{flag: value}))


def test_other_schedulers_and_reward_servers_stay_possible(files) -> None:
    for name in ("cosine", "linear", "constant", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        assert flag_problems(arguments(files, lr_scheduler=name)) == []
    assert flag_problems(arguments(files, remote_rm_url=["http://10.0.0.1:5000/get_reward"])) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        # The first two would otherwise be upstream's "The number of sample batches must be greater than ...".
        (["--rollout_batch_size", "0"], "--rollout_batch_size must be at least 1"),
        (["--n_samples_per_prompt", "1"], "a group of one has no advantage"),
        (["--micro_rollout_batch_size", "0"], "--micro_rollout_batch_size must be at least 1"),  # and this a division by it
        (["--zero_variance", "refill", "--n_samples_per_prompt", "1"], "a group of one has no advantage"),
    ],
)
def test_our_sentences_come_before_upstreams(flags: list[str], words: str) -> None:
    with pytest.raises(GateError, match=words):
        read_flags(flags)


def test_what_upstream_alone_refuses_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flag_rules, "flag_problems", lambda args: [])
    with pytest.raises(GateError, match=r"gate flags\] OpenRLHF refuses these flags: The number of sample batches"):
        read_flags(["--advantage_estimator", "dr_grpo", "--rollout_batch_size", "0"])


def test_all_problems_are_named_at_once(files) -> None:
    with pytest.raises(GateError, match=r"--lora_dropout.*--top_p"):
        check_flags(arguments(files, lora_dropout=0.1, top_p=0.5))


def test_a_missing_data_file_is_named(files) -> None:
    with pytest.raises(GateError, match="--eval_dataset .*none.jsonl does not exist"):
        check_flags(arguments(files, eval_dataset="none.jsonl"))
    with pytest.raises(GateError, match="--prompt_data .* is a folder, not a file; --eval_dataset none.jsonl does not exist"):
        check_flags(arguments(files, prompt_data=str(files[0].parent), eval_dataset="none.jsonl"))


def rows(*pairs) -> list[dict]:
    return [{"id": None, "problem": p, "label": label, "line": n} for n, (p, label) in enumerate(pairs, start=1)]


@pytest.mark.parametrize("label", ["63,65", "1.5", "", "seven", 1.0, True, None, "1/2"])
def test_a_label_that_is_no_integer_is_refused(label) -> None:
    with pytest.raises(GateError, match=r"labels must be integers.*line 2"):
        check_labels(rows(("a?", "1"), ("b?", label)), "train.jsonl")


@pytest.mark.parametrize("label", ["7", 7, "-3"])
def test_integer_labels_pass(label) -> None:
    check_labels(rows(("a?", label)), "train.jsonl")


@pytest.mark.parametrize("problem", ["", "  ", "evil <|end|> text", None])
def test_a_prompt_that_cannot_be_rendered_is_refused(problem) -> None:
    with pytest.raises(GateError, match="train.jsonl, line 1"):
        check_labels(rows((problem, "1")), "train.jsonl")


def test_a_duplicated_prompt_is_refused() -> None:
    with pytest.raises(GateError, match="more than once.*2 rows"):
        check_labels(rows(("a  b?", "1"), ("a b?", "1"), ("c?", "2")), "train.jsonl")


def test_a_training_problem_in_the_evaluation_set_is_refused() -> None:
    with pytest.raises(GateError, match="in the evaluation set.*line 2"):
        check_disjoint(rows(("a?", "1"), ("b?", "2")), rows(("b?", "2")))


def test_a_row_that_cannot_be_read_is_named(tmp_path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"input": "a", "label": 1}\n{"input": "b"}\n')
    with pytest.raises(GateError, match=r"broken.jsonl, line 2"):
        read_prompts(path, "input", "label")
    path.write_bytes(b'{"input": "a", "label": 1}\n{"input": "caf\xe9", "label": 2}\n')
    with pytest.raises(GateError, match=r"broken.jsonl, line 2"):
        read_prompts(path, "input", "label")
    path.write_text("")
    with pytest.raises(GateError, match="holds no prompts"):
        read_prompts(path, "input", "label")


def test_a_dataset_smaller_than_a_batch_is_refused(files) -> None:
    with pytest.raises(GateError, match="less than one batch of 64.*zero steps"):
        check_launch(arguments(files, rollout_batch_size=64, train_batch_size=256))


def test_a_short_run_must_be_asked_for(files) -> None:
    with pytest.raises(GateError, match="--allow_short"):
        check_length(arguments(files, allow_short=False), 32)
    check_length(arguments(files, allow_short=False), 8 * 20)


def test_a_refilled_run_is_as_long_as_it_is_for_certain(files) -> None:
    refill = {"zero_variance": "refill", "lr_scheduler": "constant_with_warmup"}
    with pytest.raises(GateError, match="5 global steps for certain"):  # 8 to 32 prompts a step
        check_length(arguments(files, allow_short=False, **refill), 8 * 20)
    check_length(arguments(files, allow_short=False, **refill), 32 * 20)
    # Warm-up is a share of those steps too.
    with pytest.raises(GateError, match="warm-up takes 2 of 5"):
        check_length(arguments(files, lr_warmup_ratio=0.3, **refill), 8 * 20)


def test_a_schedule_that_must_know_its_end_is_refused_with_refill(files) -> None:
    refill = {"zero_variance": "refill", "lr_scheduler": "cosine_with_min_lr"}
    with pytest.raises(GateError, match="--lr_scheduler cosine_with_min_lr needs the number of steps.*constant_with_warmup"):
        check_length(arguments(files, **refill), 32 * 20)
    check_length(arguments(files, lr_scheduler="cosine_with_min_lr"), 32 * 20)


def test_devices_are_counted(files) -> None:
    args = arguments(files, actor_num_gpus_per_node=4, vllm_num_engines=2, vllm_tensor_parallel_size=2)
    assert devices_needed(args) == 8
