"""Which kernels vLLM 0.20.2 takes for gpt-oss on a card, by its own rules; tests compare them with its code."""

import argparse
import os

from gptoss_rl.doctor.findings import OK, UNKNOWN, WARNING, Finding, rated
from gptoss_rl.doctor.machine import Machine
from gptoss_rl.doctor.sizes import config


def attention_backend(capability: float) -> str:
    """The attention kernel of the engines, one that knows attention sinks.

    vLLM 0.20.2, platforms/cuda.py:47-106 for the order; flash_attn.py:196 and fa_utils.py:200 (FlashAttention 3, Hopper),
    flashinfer.py:411 (TRT-LLM's kernels, Blackwell), triton_attn.py:369 (every card).
    """
    if 9.0 <= capability < 10.0:
        return "FLASH_ATTN"
    return "FLASHINFER" if 10.0 <= capability < 11.0 else "TRITON_ATTN"


def mxfp4_backend(capability: float, with_lora: bool) -> str:
    """The experts' kernel, when no VLLM_* variable asks for another. vLLM 0.20.2, fused_moe/oracle/mxfp4.py:193-400."""
    if with_lora or not 9.0 <= capability < 11.0:
        return "MARLIN"
    return "FLASHINFER_TRTLLM_MXFP4_BF16" if capability >= 10.0 else "TRITON"


def check_kernels(args: argparse.Namespace, machine: Machine) -> list[Finding]:
    """The engines' kernels on these cards, and variables that have no effect any more or change the choice."""
    served = config(args.vllm_pretrain or args.pretrain)
    if args.num_devices is not None:
        return [Finding(OK, "engine kernels", "vLLM's CPU attention, which has sinks; MXFP4 has no kernel there")]
    capability, with_lora = machine.least("capability"), args.vllm_lora_sync == "adapter"
    if not machine.gpus:
        return [Finding(UNKNOWN, "engine kernels", "no card here; on an A30 (8.0) attention TRITON_ATTN, MXFP4 experts MARLIN")]
    if capability is None:
        return [Finding(UNKNOWN, "engine kernels", "nvidia-smi gives no compute capability of these cards")]
    experts = mxfp4_backend(capability, with_lora)
    quantised = not served or bool(served.get("quantization_config"))
    findings = [
        Finding(OK, "attention backend", f"{attention_backend(capability)} on {capability}, by vLLM 0.20.2's rules"),
        rated(quantised, WARNING, "MXFP4 kernel", f"{experts} on {capability}" if quantised else "none: the checkpoint is BF16",
              "pass the released checkpoint as --vllm_pretrain: a third of the memory, the same function"),
    ]  # fmt: skip
    return [*findings, *check_variables()]


def check_variables() -> list[Finding]:
    """Variables that users know from other versions of vLLM."""
    known = {
        "VLLM_ATTENTION_BACKEND": "vLLM 0.20.2 does not read it any more: unset it",
        "VLLM_MXFP4_USE_MARLIN": "it changes the kernel of the experts, which parity was not measured with: unset it",
        "VLLM_USE_FLASHINFER_MOE_MXFP4_BF16": "it changes the kernel of the experts: unset it",
    }
    return [Finding(WARNING, name, f"is set to {os.environ[name]!r}", known[name]) for name in known if name in os.environ]
