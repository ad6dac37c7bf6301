"""A random gpt-oss with everything the real one has, of any size: for tests and benchmarks."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 320
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def save_random_gpt_oss(
    folder: Path, *, seed: int = 0, std: float = 0.08, scales: dict[str, float] | None = None, **config
) -> None:
    """Write a BF16 checkpoint: sinks, sliding and full attention, routed experts, YaRN, biases.

    Args:
        std: of every matrix; 0.08 makes outputs depend on every part without being chaotic in bf16.
        scales: part of a parameter's name -> factor on its matrix.
        config: fields of GptOssConfig that differ from the two-layer default.
    """
    torch.manual_seed(seed)
    shape = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": VOCABULARY,
        "sliding_window": 16,
        "max_position_embeddings": 512,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 128,
            "truncate": False,
        },
        "eos_token_id": 1,
        "pad_token_id": 0,
    } | config
    layers = shape["num_hidden_layers"]
    shape["layer_types"] = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
    model = GptOssForCausalLM(GptOssConfig(**shape))
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, mean=1.0)
        elif parameter.ndim > 1:
            factor = next((f for part, f in (scales or {}).items() if part in name), 1.0)
            torch.nn.init.normal_(parameter, std=std * factor)
    model.to(torch.bfloat16).save_pretrained(folder)
    # vLLM loads a tokenizer although every prompt here is given as token ids.
    vocabulary = models.WordLevel({f"t{i}": i for i in range(shape["vocab_size"])}, unk_token="t2")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), eos_token="t1", pad_token="t0").save_pretrained(folder)


def random_adapter(folder: Path, *, rank: int, seed: int = 0, std: float = 0.1, dtype=torch.float32) -> torch.nn.Module:
    """The checkpoint in `folder` with a LoRA of alpha = 2 * rank whose B is random instead of zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = GptOssForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(LORA_TARGETS)))
    set_random_B(model, seed=seed, std=std)
    return model


def set_random_B(model: torch.nn.Module, *, seed: int, std: float = 0.1) -> None:
    """Overwrite every LoRA B with seeded Gaussian noise: another seed is another adapter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)
