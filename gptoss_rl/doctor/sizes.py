"""Memory, disk and object store that a run takes, each as named terms in GB."""

import argparse
import json
from pathlib import Path
from typing import Any

from gptoss_rl.doctor.findings import GB

# gpt-oss-20b: 20.9 B parameters; a layer's experts are the largest that ZeRO-3 gathers at once.
LAYERS, HEADS, HIDDEN, VOCABULARY, LAYER_GB, BASE_GB, MXFP4_GB = 24, 64, 2880, 201_088, 1.7, 41.8, 13.8
SHAPE = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_size": HIDDEN,
}
EAGER_BYTES = 8.4  # of memory for samples x heads x tokens^2; results/2026-11-23_actor-step
LOGITS_GB = 0.8  # the chunked projection; the same place
RUNTIME_GB = 1.5  # CUDA context and allocator
HOST_GB = 12.0  # Ray, engines, trainer and data of the tiny run, which is the least that any run takes
OPTIMIZER_BYTES = 12  # of a trained parameter: fp32 master and Adam's two moments
BYTES_PER_TOKEN = 64  # ids, masks, logprobs and advantages of one token on its way through the object store
TEXT_BYTES = 4  # of a token, as text


def config(path: str | None) -> dict[str, Any]:
    """config.json of a model directory; empty when there is none, or none that can be read, which `check_checkpoints` says."""
    file = Path(path or "", "config.json")
    try:
        return json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError:
        return {}


def is_20b(args: argparse.Namespace) -> bool:
    """Whether the run trains gpt-oss-20b, as far as can be seen: a model that is not there yet is taken for it."""
    return config(args.pretrain).get("hidden_size", HIDDEN) >= HIDDEN


def samples_per_micro_batch(args: argparse.Namespace) -> int:
    """How many samples of full length a trainer card holds at once."""
    if args.micro_batch_max_tokens and args.loss_normalizer == "constant":
        tokens = args.prompt_max_len + args.generate_max_len
        return max(1, min(args.micro_train_batch_size, args.micro_batch_max_tokens // tokens))
    return args.micro_train_batch_size


def trainer_memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak memory of a trainer card, at the longest samples."""
    tokens, samples = args.prompt_max_len + args.generate_max_len, samples_per_micro_batch(args)
    ranks = args.actor_num_nodes * args.actor_num_gpus_per_node
    return {
        "eager attention": EAGER_BYTES * samples * HEADS * tokens**2 / GB,
        "gathered layers": 2 * LAYER_GB,
        "checkpointed activations": samples * tokens * HIDDEN * LAYERS * 2 / GB,
        "logprobs": LOGITS_GB if args.logprob_chunk_rows else 4 * VOCABULARY * 4 * samples * tokens / GB,
        "parameters": 0.0 if args.offload else BASE_GB / ranks,
        "runtime": RUNTIME_GB,
    }


def engine_memory(args: argparse.Namespace) -> dict[str, float]:
    """Memory of an engine card without its KV cache, which takes what is left."""
    served = config(args.vllm_pretrain or args.pretrain)
    weights = BASE_GB if served and not served.get("quantization_config") else MXFP4_GB
    return {"weights": weights / args.vllm_tensor_parallel_size + 0.5, "activations and graphs": 3.0, "runtime": RUNTIME_GB}


def host_memory(args: argparse.Namespace) -> dict[str, float]:
    """Memory of the host: what CPU offload keeps there, pinned, and everything else."""
    return {"offloaded parameters": BASE_GB * 1.1 if args.offload and is_20b(args) else 0.0, "Ray, engines, data": HOST_GB}


def lora_parameters(args: argparse.Namespace) -> int:
    """Parameters of the adapter: rank x (inputs + outputs) of every target of every layer."""
    shape = {**SHAPE, **config(args.pretrain)}
    hidden, width = shape["hidden_size"], shape["head_dim"]
    queries, keys = shape["num_attention_heads"] * width, shape["num_key_value_heads"] * width
    sides = {"q_proj": hidden + queries, "k_proj": hidden + keys, "v_proj": hidden + keys, "o_proj": queries + hidden}
    targets = args.target_modules if isinstance(args.target_modules, list) else [args.target_modules]
    return args.lora_rank * shape["num_hidden_layers"] * sum(sides.get(target, max(sides.values())) for target in targets)


def disk(args: argparse.Namespace, steps: int, evaluated: int) -> dict[str, float]:
    """What the run directory grows to over `steps` global steps, `evaluated` problems an evaluation."""
    adapter, text = 4 * lora_parameters(args) / GB, TEXT_BYTES * args.generate_max_len / GB
    evaluations = 2 + (steps // args.eval_steps if args.eval_steps > 0 else 0)
    kept = 1 + (min(args.max_ckpt_num, steps // args.save_steps) if args.save_steps > 0 else 0)  # one while it is replaced
    return {
        "checkpoints": kept * (adapter + OPTIMIZER_BYTES * lora_parameters(args) / GB),
        "adapter": adapter,
        "samples and evaluations": text * (8 * steps + evaluations * evaluated * args.eval_n_samples_per_prompt),
        "logs": 1.0,
    }


def object_store(args: argparse.Namespace) -> dict[str, float]:
    """What lies in Ray's object store at once: a step's samples, on the way in and out, and the adapter."""
    tokens = args.rollout_batch_size * args.n_samples_per_prompt * (args.prompt_max_len + args.generate_max_len)
    return {"samples": 2 * BYTES_PER_TOKEN * tokens / GB, "adapter": 4 * lora_parameters(args) / GB}
