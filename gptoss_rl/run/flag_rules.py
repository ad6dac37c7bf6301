"""Flags that would train wrongly, or not at all: each is refused by a sentence that names it."""

import argparse
from pathlib import Path

import torch

from gptoss_rl.errors import GateError
from gptoss_rl.flags import RefusedFlags, parse, resolve
from gptoss_rl.training.policy_loss import loss_options
from gptoss_rl.training.schedule import build_scheduler

WANDB_KEY_LENGTH = 40
# Every engine serves an adapter of exactly these (sync/vllm_worker.py); experts have no slot there.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
# What steps, memory and time are computed from.
COUNTS = (
    "actor_num_nodes", "actor_num_gpus_per_node", "vllm_num_engines", "vllm_tensor_parallel_size", "rollout_batch_size",
    "train_batch_size", "micro_train_batch_size", "micro_rollout_batch_size", "prompt_max_len", "generate_max_len",
    "num_episodes", "max_epochs", "max_samples",
)  # fmt: skip


def read_flags(argv: list[str]) -> argparse.Namespace:
    """The flags of a command line, resolved.

    Raises:
        GateError: OpenRLHF's own validation refuses them. Our sentences, which name flag and remedy, are given where there
            are any.
    """
    try:
        return resolve(parse(argv))
    except RefusedFlags as refused:
        problems = flag_problems(refused.flags)
        if problems:
            raise GateError("flags", "; ".join(problems)) from refused
        raise


def count_problems(args: argparse.Namespace) -> list[str]:
    """Numbers without which nothing can be planned; one sentence each."""
    none = [flag for flag in COUNTS if (getattr(args, flag) or 0) < 1]
    problems = [f"--{flag} must be at least 1" for flag in none]
    if args.n_samples_per_prompt < 2:
        problems.append("--n_samples_per_prompt must be at least 2: a group of one has no advantage")
    return problems


def schedule_problems(args: argparse.Namespace) -> list[str]:
    """Why the steps of a run, or their learning rates, cannot be computed; one sentence each."""
    return count_problems(args) or [*batch_problems(args), *scheduler_problems(args)]


def scheduler_problems(args: argparse.Namespace) -> list[str]:
    """No learning rate; or a scheduler that transformers does not know, or that needs what a run does not give it."""
    if not args.actor_learning_rate > 0:
        return ["--actor_learning_rate must be above 0: nothing would be learned"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.actor_learning_rate)
    try:
        scheduler = build_scheduler(args, optimizer, 10)
        optimizer.step()
        scheduler.step()
    except (TypeError, ValueError) as error:
        return [f"--lr_scheduler {args.lr_scheduler} cannot be used ({error}); pass cosine_with_min_lr or constant_with_warmup"]
    return []


def batch_problems(args: argparse.Namespace) -> list[str]:
    """Batch sizes that do not divide; one sentence each."""
    samples = args.rollout_batch_size * args.n_samples_per_prompt
    ranks = args.actor_num_nodes * args.actor_num_gpus_per_node
    rules = [
        (samples % args.train_batch_size != 0,
         f"--rollout_batch_size x --n_samples_per_prompt = {samples} is not a multiple of --train_batch_size "
         f"{args.train_batch_size}: gradients would be left over for the next step"),
        (args.train_batch_size % (args.micro_train_batch_size * ranks) != 0,
         f"--train_batch_size {args.train_batch_size} is not a multiple of --micro_train_batch_size x actor ranks = "
         f"{args.micro_train_batch_size * ranks}"),
        (samples % (args.micro_rollout_batch_size * ranks) != 0,
         f"{samples} samples a step cannot be dealt evenly to {ranks} actor ranks in batches of "
         f"{args.micro_rollout_batch_size} (--micro_rollout_batch_size)"),
    ]  # fmt: skip
    return [message for broken, message in rules if broken]


def loss_problems(args: argparse.Namespace) -> list[str]:
    """Flags of the loss that contradict each other; one sentence each."""
    constant, whole = args.loss_normalizer == "constant", args.zero_variance == "keep"
    rules = [
        (not constant and args.zero_variance == "skip",
         "--zero_variance skip changes the gradient under --loss_normalizer token_mean, whose mean counts those tokens"),
        (not constant and args.is_correction != "none",
         "--is_correction needs --loss_normalizer constant"),
        (not constant and args.old_logprobs != "recompute",
         "--old_logprobs rollout needs --loss_normalizer constant"),
        (not constant and args.init_kl_coef > 0,
         "--init_kl_coef above 0 needs --loss_normalizer constant, where the base model is the policy without its adapter"),
        (args.init_kl_coef > 0 and not whole,
         "--init_kl_coef above 0 needs --zero_variance keep: groups without variance still have a KL gradient"),
        (bool(args.entropy_loss_coef) and not whole,
         "--entropy_loss_coef needs --zero_variance keep: groups without variance still have an entropy gradient"),
        (args.old_logprobs == "rollout" and args.is_correction == "none",
         "--old_logprobs rollout needs --is_correction tis, icepop or seq_mask: nothing else keeps the ratio in bounds"),
        (constant and args.enable_vllm_is_correction,
         "--enable_vllm_is_correction is upstream's; use --is_correction"),
        (constant and (args.policy_loss_type != "ppo" or args.dual_clip is not None),
         "--policy_loss_type and --dual_clip do not work with --loss_normalizer constant"),
        (constant and args.max_epochs != 1, "--max_epochs must be 1 with --loss_normalizer constant"),
        (constant and args.freezing_actor_steps > 0, "--freezing_actor_steps must be -1 with --loss_normalizer constant"),
        (args.overlong_buffer_len is not None or args.stop_properly_penalty_coef is not None,
         "length penalties change the reward, which is exact match here: drop --overlong_buffer_len and "
         "--stop_properly_penalty_coef"),
        (args.dynamic_filtering and args.zero_variance != "refill",
         "--dynamic_filtering has no bound upstream; use --zero_variance refill"),
    ]  # fmt: skip
    return [message for broken, message in rules if broken]


def silent_problems(args: argparse.Namespace) -> list[str]:
    """Flags of OpenRLHF that would do nothing here, or something else than they say; one sentence each."""
    constant = args.loss_normalizer == "constant"
    low, high = loss_options(args).weight_low, loss_options(args).weight_high
    rules = [
        (args.agent_func_path is not None, "--agent_func_path goes round the reward gate; use --remote_rm_url"),
        (args.input_template is not None, "--input_template is ignored: gptoss_rl/prompts.py renders every prompt"),
        (args.prompt_split != "train", "--prompt_split is ignored for the files that the label gate reads; leave it out"),
        (args.max_len is not None,
         "--max_len cuts responses behind --generate_max_len's back, by which the loss divides; use --prompt_max_len and "
         "--generate_max_len"),
        (args.normalize_reward, "--normalize_reward is not Dr. GRPO: its advantage is the reward minus its group's mean"),
        (constant and (args.use_kl_loss or args.kl_target is not None),
         "--use_kl_loss and --kl_target are ignored with --loss_normalizer constant; --init_kl_coef is the KL's weight"),
        (args.eval_temperature == 0 and args.eval_n_samples_per_prompt > 1,
         "--eval_n_samples_per_prompt above 1 at --eval_temperature 0 counts one greedy response several times"),
        (args.is_correction != "none" and not low < 1 < high,
         f"--is_weight_low {low:g} and --is_weight_high {high:g} must lie on both sides of 1, the weight of equal policies"),
        (args.num_devices is not None and args.actor_num_nodes * args.actor_num_gpus_per_node > 1,
         "--num_devices (a CPU) with more than one actor rank: DeepSpeed's ZeRO-3 over gloo now and then makes weights NaN"),
        (args.num_devices is not None and args.vllm_executor_backend == "ray",
         "--vllm_executor_backend ray with --num_devices (a CPU): vLLM does not know its CPU build's devices in Ray; pass mp"),
    ]  # fmt: skip
    return [message for broken, message in rules if broken]


def value_problems(args: argparse.Namespace) -> list[str]:
    """Values that no run can be made with, whatever the other flags are; one sentence each."""
    targets = [args.target_modules] if isinstance(args.target_modules, str) else args.target_modules
    grader = args.remote_rm_url[0] if isinstance(args.remote_rm_url, list) else args.remote_rm_url or ""
    rules = [
        (args.lora_rank < 1, "--lora_rank must be above 0: only adapters are synced to the engines"),
        (args.lora_alpha < 1, "--lora_alpha must be above 0: an adapter is scaled by alpha / rank, and would do nothing"),
        (set(targets) != set(LORA_TARGETS),
         f"--target_modules {' '.join(targets)}: the engines serve an adapter of {' '.join(LORA_TARGETS)}, all of them and "
         "nothing else"),
        (grader.endswith(".py") and not Path(grader).is_file(),
         f"--remote_rm_url {grader} does not exist; the reward file is reward_func_em.py"),
        (not 0 < args.vllm_gpu_memory_utilization <= 1,
         "--vllm_gpu_memory_utilization is a share of a card's memory: above 0, at most 1"),
        (args.zero_stage != 3,
         f"--zero_stage {args.zero_stage}: the gates on gradients add up the parts that ZeRO-3 leaves on each rank; pass 3"),
    ]  # fmt: skip
    return [message for broken, message in rules if broken]


def flag_problems(args: argparse.Namespace) -> list[str]:
    """Flag combinations that are known to train wrongly or not at all; one sentence each."""
    rules = [
        (args.run_dir is None, "--run_dir is missing: the run's files need a folder"),
        (args.lora_dropout != 0, "--lora_dropout must be 0: old and new logprobs would differ at the same weights"),
        (args.attn_implementation != "eager",
         f"--attn_implementation {args.attn_implementation} drops gpt-oss's sinks; pass eager"),
        (args.packing_samples, "--packing_samples forces flash attention, which drops gpt-oss's sinks"),
        (args.use_dynamic_batch, "--use_dynamic_batch forces flash attention, which drops gpt-oss's sinks"),
        (args.ring_attn_size > 1, "--ring_attn_size above 1 forces flash attention, which drops gpt-oss's sinks"),
        (args.ds_tensor_parallel_size > 1, "--ds_tensor_parallel_size above 1 is not supported by the LoRA sync"),
        (args.param_dtype == "fp16", "--param_dtype fp16 overflows in gpt-oss's experts; use bf16 (or fp32 on a CPU)"),
        (args.load_in_4bit, "--load_in_4bit quantises the trainer differently from the engines"),
        (args.use_liger_kernel, "--use_liger_kernel replaces the model class; gpt-oss needs its own"),
        (args.aux_loss_coef > 0, "--aux_loss_coef above 0 trains on the wrong tensor for gpt-oss; keep 0"),
        (args.gradient_checkpointing and not args.gradient_checkpointing_use_reentrant,
         "--gradient_checkpointing needs --gradient_checkpointing_use_reentrant: the other kind fails with LoRA and ZeRO-3"),
        (args.async_train, "--async_train is not verified with this sync; run synchronously"),
        (args.colocate_all_models, "--colocate_all_models is not verified with this sync; give the engines their own devices"),
        (args.deepspeed_enable_sleep,
         "--deepspeed_enable_sleep moves the policy off its device between steps, which the sync does not know of"),
        (bool(args.enable_ema), "--enable_ema would evaluate one policy and save another"),
        (args.advantage_estimator != "dr_grpo", "--advantage_estimator must be dr_grpo: the recipe of this repository"),
        (not args.remote_rm_url, "--remote_rm_url must name the reward file, reward_func_em.py"),
        (args.temperature <= 0, "--temperature must be above 0: greedy groups have no variance"),
        (args.top_p != 1.0, "--top_p must be 1: the trainer cannot reproduce truncated probabilities"),
        (args.apply_chat_template is False, "--apply_chat_template is missing: prompts would not be rendered at all"),
        (bool(args.use_wandb) and len(args.use_wandb) >= WANDB_KEY_LENGTH,
         "--use_wandb with the key itself would put it into logs and files; run `wandb login` once and pass --use_wandb True"),
        (args.prompt_data is None, "--prompt_data is missing"),
        (args.label_key is None, "--label_key is missing"),
    ]  # fmt: skip
    found = [message for broken, message in rules if broken]
    return [*value_problems(args), *found, *silent_problems(args), *schedule_problems(args), *loss_problems(args)]
