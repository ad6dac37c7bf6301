"""Flags, learning rate and duration: what the run would do if it were started."""

import argparse
import math
from pathlib import Path

from gptoss_rl.doctor.findings import OK, STOP, UNKNOWN, WARNING, Finding
from gptoss_rl.doctor.machine import Machine
from gptoss_rl.doctor.sizes import BASE_GB, MXFP4_GB, SHAPE, config, is_20b, samples_per_micro_batch
from gptoss_rl.errors import GateError
from gptoss_rl.run.flag_rules import flag_problems, schedule_problems
from gptoss_rl.run.preflight_lr import learning_rates, report
from gptoss_rl.run_files import read_json
from gptoss_rl.sync.engine import slot_rank
from gptoss_rl.training.policy_loss import is_on_policy
from gptoss_rl.training.schedule import run_length

NO_DATA = "without readable data the number of steps is not known"
LEAST_LORA_RATE = 1e-6
# What decides how long a step takes; a finished run that agrees in all of them is a measurement.
SAME = (
    "pretrain", "vllm_pretrain", "prompt_max_len", "generate_max_len", "reasoning_effort", "rollout_batch_size",
    "n_samples_per_prompt", "train_batch_size", "micro_train_batch_size", "micro_rollout_batch_size", "micro_batch_max_tokens",
    "actor_num_nodes", "actor_num_gpus_per_node", "vllm_num_engines", "vllm_tensor_parallel_size", "num_devices", "lora_rank",
    "param_dtype", "offload", "gradient_checkpointing", "loss_normalizer", "zero_variance", "old_logprobs", "init_kl_coef",
    "vllm_lora_sync", "enforce_eager",
)  # fmt: skip
PCIE_GB, CARD_GB = 25.0, 933.0  # a second: PCIe 4.0 x16 in practice; an A30's memory (its data sheet)


def check_flag_combinations(args: argparse.Namespace) -> list[Finding]:
    """Flags and combinations that are known to train wrongly or not at all; each finding names what to pass instead."""
    problems = [*flag_problems(args), *engine_problems(args)]
    return [Finding(STOP, "flags", problem) for problem in problems] or [Finding(OK, "flags", "no known-bad combination")]


def engine_problems(args: argparse.Namespace) -> list[str]:
    """What vLLM would refuse once the engines start; one sentence each."""
    problems = []
    if args.vllm_lora_sync == "adapter":
        try:
            slot_rank(args.lora_rank)
        except ValueError as error:
            problems.append(str(error))
    shards = args.vllm_tensor_parallel_size
    heads = {**SHAPE, **config(args.vllm_pretrain or args.pretrain)}["num_key_value_heads"]
    if shards > 0 and heads % shards:
        problems.append(f"--vllm_tensor_parallel_size {shards} does not divide the model's {heads} key-value heads")
    return problems


def check_learning_rate(args: argparse.Namespace, prompts: int) -> Finding:
    """The schedule that training would build, and whether a LoRA can learn at its peak."""
    if schedule_problems(args):
        return Finding(UNKNOWN, "learning rate", "with such flags (see there) there is no schedule")
    if not prompts:
        return Finding(UNKNOWN, "learning rate", NO_DATA)
    try:
        report(args, prompts)
    except GateError as error:
        return Finding(STOP, "learning rate", str(error))
    length = run_length(args, prompts)
    rates = learning_rates(args, length.optimizer_steps)
    seen = (
        f"{length.global_steps} global steps, {length.optimizer_steps} optimizer steps, {args.lr_scheduler} "
        f"from {rates[0]:.1e} over {max(rates):.1e} to {rates[-1]:.1e}"
    )
    if max(rates) < LEAST_LORA_RATE:
        remedy = (
            "a LoRA hardly moves at such a rate, so a null result would say nothing: --actor_learning_rate 1e-5 (variant a31)"
        )
        return Finding(WARNING, "learning rate", seen, remedy)
    return Finding(OK, "learning rate", seen)


def check_duration(args: argparse.Namespace, machine: Machine, prompts: int) -> Finding:
    """How long a run over `prompts` prompts takes: as a like run took, or else the least that moving the weights takes."""
    steps = run_length(args, prompts).global_steps
    if not steps:
        return Finding(UNKNOWN, "duration", f"{prompts} prompts make no step (see learning rate)" if prompts else NO_DATA)
    run = measured_run(args)
    if run is not None:
        seconds = read_json(run / "summary.json")["seconds_per_step"]
        seen = f"{steps} steps x {seconds:.1f} s = {clock(steps * seconds)} without evaluations, as measured in {run}"
        return Finding(OK, "duration", seen)
    cards = {gpu["name"] for gpu in machine.gpus or []}
    if not (is_20b(args) and args.offload and all("A30" in card for card in cards)):
        return Finding(UNKNOWN, "duration", "no finished run with these sizes under runs/ to go by")
    terms = least_seconds(args)
    shown = ", ".join(f"{name} {value:.0f}" for name, value in terms.items())
    step = sum(terms.values())
    seen = (
        f"{steps} steps x {step:.0f} s ({shown}) = {clock(steps * step)} at full-length responses with no group left out, were "
        f"moving weights all ({PCIE_GB:.0f} GB/s over PCIe, {CARD_GB:.0f} GB/s on the card); not measured"
    )
    return Finding(OK, "duration", seen)


def measured_run(args: argparse.Namespace) -> Path | None:
    """The newest finished run beside this one whose flags agree in `SAME`."""
    folder = Path(args.run_dir or "runs/x").parent
    found = []
    for summary in folder.glob("*/summary.json"):
        ran = read_json(summary.with_name("config.json"))
        if "seconds_per_step" in read_json(summary) and all(ran.get(key) == vars(args)[key] for key in SAME):
            found.append(summary)
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def least_seconds(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step that moving gpt-oss-20b's weights takes at responses of full length, computing not counted.

    ZeRO-3 with CPU offload brings the whole BF16 base to every card for each pass of each micro-batch: forward, again for
    gradient checkpointing, backward. A decode step reads the engine's share of the MXFP4 weights once for all its sequences.
    """
    samples = args.rollout_batch_size * args.n_samples_per_prompt
    ranks = args.actor_num_nodes * args.actor_num_gpus_per_node
    stream = BASE_GB / PCIE_GB
    micro_batches = samples / ranks / samples_per_micro_batch(args)
    on_policy = is_on_policy(args) and args.loss_normalizer == "constant"
    old = 0.0 if on_policy or args.old_logprobs == "rollout" else samples / ranks / args.micro_rollout_batch_size
    waves = math.ceil(samples / (args.vllm_num_engines or 1) / (args.vllm_max_num_seqs or 256))
    return {
        "training": micro_batches * (3 if args.gradient_checkpointing else 2) * stream,
        "old logprobs": old * stream,
        "generation": waves * args.generate_max_len * MXFP4_GB / args.vllm_tensor_parallel_size / CARD_GB,
    }


def clock(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
