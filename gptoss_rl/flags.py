"""The flags that the patches add to OpenRLHF's PPO parser, and the parser itself without its heavy imports."""

import argparse
import ast
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from gptoss_rl.errors import GateError
from gptoss_rl.prompts import DEFAULT_REASONING_EFFORT, REASONING_EFFORTS

REFILL_FACTOR = 4  # prompts a step that refill may draw, in rollout batches
ENTRY_POINT = "openrlhf.cli.train_ppo_ray"


# What an evaluation measures depends on these; runs that differ in one are not compared.
EVALUATION_FLAGS = ("eval_temperature", "generate_max_len", "eval_n_samples_per_prompt", "reasoning_effort")


@dataclass(frozen=True)
class ParityLimits:
    """How far trainer and sampler may be apart before the run stops; a flag each, by the same name, and 0 is off."""

    parity_max_abs_diff: float = 0.2  # nats, mean |logprob difference| of response tokens
    parity_max_kl: float = 0.05  # nats a token, KL(sampler || trainer)
    parity_max_prompt_abs_diff: float = 0.5  # nats, before step 1, of prompt tokens
    max_mismatch_kl: float = 0.015  # nats a token, of each of the last steps
    mismatch_patience: int = 5  # of how many

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> "ParityLimits":
        """Of a run's flags, or of its config.json; the defaults for what is not there."""
        return cls(**{f.name: flags[f.name] for f in fields(cls) if flags.get(f.name) is not None})

    def stopping_kl(self) -> float:
        """The lowest KL at which the run stops itself; infinity when nothing does."""
        return min((limit for limit in (self.max_mismatch_kl, self.parity_max_kl) if limit > 0), default=math.inf)


class RefusedFlags(GateError):
    """Upstream's own validation does not let `flags` pass, which are as they stood on the command line."""

    def __init__(self, flags: argparse.Namespace, error: Exception):
        super().__init__("flags", f"OpenRLHF refuses these flags: {error}")
        self.flags = flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag of this repository to upstream's parser. The one place where they are defined."""
    # Switched on by the base launcher; a variant must be able to switch them off again.
    parser.add_argument("--no_gradient_checkpointing", dest="gradient_checkpointing", action="store_false")
    parser.add_argument("--no_offload", dest="offload", action="store_false")
    parser.set_defaults(ckpt_path=None, save_path=None)  # both lie in the run directory, see `resolve`

    run = parser.add_argument_group("gptoss-rl: run")
    run.add_argument("--run_dir", default=None, help="folder for this run's files; required")
    run.add_argument("--reasoning_effort", choices=REASONING_EFFORTS, default=DEFAULT_REASONING_EFFORT)
    run.add_argument("--allow_short", action="store_true", help="accept fewer than 20 global steps (tests, tiny runs)")
    run.add_argument("--reward_timeout", type=float, default=30.0, help="seconds one reward call may take")

    trainer = parser.add_argument_group("gptoss-rl: trainer")
    trainer.add_argument("--offload", action="store_true", help="keep ZeRO-3 parameters in host memory; off: on the device")
    trainer.add_argument(
        "--log_ratio_clip", type=float, default=20.0,
        help="clamp the log-ratio to +- this before exp (nats); 20 only stops overflow, 0 is off",
    )  # fmt: skip
    trainer.add_argument("--num_devices", type=int, default=None,
        help="logical devices to give a Ray that this run starts itself; default: what Ray finds (CPU machines need it)",
    )  # fmt: skip

    _add_loss_arguments(parser.add_argument_group("gptoss-rl: loss"))

    engine = parser.add_argument_group("gptoss-rl: rollout engine")
    engine.add_argument("--vllm_pretrain", default=None, help="checkpoint the engines serve (MXFP4); default: --pretrain")
    engine.add_argument("--vllm_max_num_seqs", type=int, default=None, help="sequences in flight per engine; vLLM's default")
    engine.add_argument(
        "--vllm_max_num_batched_tokens",
        type=int,
        default=None,
        help="tokens a scheduler step; vLLM's default",
    )
    engine.add_argument("--vllm_kv_cache_dtype", default=None, help="e.g. fp8; default: the model's")
    engine.add_argument(
        "--vllm_max_cudagraph_capture_size", type=int, default=None,
        help="largest captured batch; vLLM captures up to 1024 for gpt-oss, which 24 GB cannot hold",
    )  # fmt: skip
    engine.add_argument("--vllm_executor_backend", choices=("uni", "mp", "ray"), default=None,
        help="default: uni at TP=1, above it ray, or mp on a CPU")  # fmt: skip

    sync = parser.add_argument_group("gptoss-rl: weight sync")
    sync.add_argument("--vllm_lora_sync", choices=("adapter", "merge"), default="adapter",
        help="adapter: vLLM's own LoRA slot, exact; merge: into the bf16 weight, which rounds small updates away")  # fmt: skip
    sync.add_argument("--vllm_sync_timeout", type=float, default=300.0, help="seconds an engine may take to prove a sync")

    gates = parser.add_argument_group("gptoss-rl: gates")
    gates.add_argument("--parity_max_abs_diff", type=float, default=ParityLimits.parity_max_abs_diff,
        help="mean |logprob difference| of trainer and sampler (nats) above which the run stops; 0 is off")  # fmt: skip
    gates.add_argument("--parity_max_kl", type=float, default=ParityLimits.parity_max_kl,
        help="KL(sampler || trainer), k3 estimate (nats a token), above which the run stops; 0 is off")  # fmt: skip
    gates.add_argument("--parity_max_prompt_abs_diff", type=float, default=ParityLimits.parity_max_prompt_abs_diff,
        help="the same mean before step 1 on prompt tokens, where less is certain; 0 is off")  # fmt: skip
    gates.add_argument("--max_mismatch_kl", type=float, default=ParityLimits.max_mismatch_kl,
        help="KL(sampler || trainer) (nats a token) that may not be exceeded in --mismatch_patience steps on end; 0 is off. "
             "0.002 and 0.015 are published gates for this model family")  # fmt: skip
    gates.add_argument("--mismatch_patience", type=int, default=ParityLimits.mismatch_patience,
        help="steps on end; the run stops with a checkpoint")  # fmt: skip
    gates.add_argument("--canary_prompts", type=int, default=4, help="prompts of the canary before step 1; 0 is off")


def _add_loss_arguments(loss: argparse._ArgumentGroup) -> None:
    loss.add_argument("--loss_normalizer", choices=("constant", "token_mean"), default="constant",
        help="constant: sum over response tokens / (samples of the optimizer step x --generate_max_len), the paper's; "
             "token_mean: upstream's mean over a micro-batch, which weighs short responses more")  # fmt: skip
    loss.add_argument("--zero_variance", choices=("keep", "skip", "refill"), default="keep",
        help="groups whose rewards are all equal have no gradient. skip: leave out their passes, same gradient; "
             "refill: draw further prompts in their place (arXiv 2503.14476)")  # fmt: skip
    loss.add_argument("--refill_max_prompts", type=int, default=None,
        help="prompts a step that refill may draw in all; default: 4 x --rollout_batch_size")  # fmt: skip
    loss.add_argument("--micro_batch_order", choices=("length", "random"), default="length",
        help="how an optimizer step's samples are put together; length needs the least padding")  # fmt: skip
    loss.add_argument("--micro_batch_max_tokens", type=int, default=None,
        help="tokens of a micro-batch, padding included, above which it gets fewer samples than --micro_train_batch_size: "
             "eager attention takes memory by samples x tokens^2; default: no limit")  # fmt: skip
    loss.add_argument("--logprob_chunk_rows", type=int, default=256,
        help="rows of logits held at once (256 x 201,088 x 4 bytes = 0.2 GB); 0 is off: all logits at once")  # fmt: skip
    loss.add_argument("--old_logprobs", choices=("recompute", "rollout"), default="recompute",
        help="old policy of the ratio. recompute: a pass of the trainer, left out when a rollout batch is one optimizer step; "
             "rollout: no pass, the sampler's logprobs enter through --is_correction alone")  # fmt: skip
    loss.add_argument("--is_correction", choices=("none", "tis", "icepop", "seq_mask"), default="none",
        help="importance weights trainer / sampler. tis: truncated from above; icepop: 0 outside the bounds; seq_mask: tis, "
             "and 0 for responses whose geometric mean is outside the bounds")  # fmt: skip
    loss.add_argument("--is_weight_low", type=float, default=None, help="lower bound; default: see training/policy_loss.py")
    loss.add_argument("--is_weight_high", type=float, default=None, help="upper bound; default: see training/policy_loss.py")


def resolve(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what follows from other flags."""
    args.dynamic_filtering = args.zero_variance == "refill"
    args.refill_max_prompts = args.refill_max_prompts or REFILL_FACTOR * args.rollout_batch_size
    if args.run_dir is not None:
        args.ckpt_path = args.ckpt_path or str(Path(args.run_dir, "checkpoints"))
        args.save_path = args.save_path or str(Path(args.run_dir, "adapter"))
    return args


def openrlhf_parser_source() -> Path:
    """File of the installed entry point, found without importing it (which would import torch and vLLM)."""
    package = importlib.util.find_spec("openrlhf")
    if package is None or package.submodule_search_locations is None:
        raise ModuleNotFoundError("openrlhf is not installed; run `bash setup_env.sh`")
    return Path(package.submodule_search_locations[0], "cli", "train_ppo_ray.py")


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse and validate a command line with the installed entry point's own code, without starting anything.

    Upstream keeps its parser in the `if __name__ == "__main__":` block. That block is run here as it stands, with
    `train` replaced by a function that keeps the arguments, so there is no second list of flags to drift.

    Raises:
        SystemExit: argparse's own, on unknown or malformed flags.
        RefusedFlags: upstream's own validation.
    """
    path = openrlhf_parser_source()
    tree = ast.parse(path.read_text(), filename=str(path))
    mains = [node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
    if len(mains) != 1:
        raise RuntimeError(f"{path} has {len(mains)} main blocks, expected 1: read the parser of this version anew")
    captured: list[argparse.Namespace] = []
    read: list[argparse.Namespace] = []
    parser = _parser_class(argv, read)
    stand_in = argparse.Namespace(**{**vars(argparse), "ArgumentParser": parser})
    scope = {"__name__": "__main__", "argparse": stand_in, "datetime": datetime, "train": captured.append}
    try:
        exec(compile(ast.Module(mains[0].body, type_ignores=[]), str(path), "exec"), scope)
    except (AssertionError, ArithmeticError, AttributeError, TypeError) as error:  # it also divides, and splits what is None
        if not read:
            raise
        raise RefusedFlags(read[0], error) from error
    return captured[0]


def _parser_class(argv: list[str], read: list[argparse.Namespace]) -> type[argparse.ArgumentParser]:
    """Upstream's parser, of `argv`; what it has read is appended to `read`."""

    class Parser(argparse.ArgumentParser):
        def __init__(self) -> None:
            # Abbreviated flags would let a typo silently set another flag.
            super().__init__(prog=ENTRY_POINT, allow_abbrev=False)

        def parse_args(self, args=None, namespace=None):
            read.append(super().parse_args(argv, namespace))
            return read[0]

    return Parser
