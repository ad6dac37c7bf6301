"""What is evaluated: a model, with an adapter or without, and the engine that serves it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptoss_rl.evaluation.sets import Decoding, EvaluationError
from gptoss_rl.models.adapter import check_base, check_shapes, read_adapter
from gptoss_rl.models.folder import CheckpointError, Weights, read_object

PROMPT_MAX = 1024  # tokens, as in training
SERVED_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")  # what the engines' LoRA slot takes, as in training


@dataclass(frozen=True)
class Served:
    """What is evaluated: a model directory, with an adapter or without."""

    name: str
    model: Path
    adapter: Path | None = None


class AdapterFiles:
    """A saved adapter, in the shape in which `LoraSync` reads the policy: what is delivered is proven as in training."""

    def __init__(self, folder: Path, model: Path):
        """
        Raises:
            EvaluationError: no adapter, one that the engines cannot serve, or one that was trained on another model.
        """
        from transformers import AutoConfig

        try:
            adapter = read_adapter(folder)
            check_shapes(adapter, Weights(model).shapes(), model)
            self.config, self.rank = AutoConfig.from_pretrained(model), adapter.rank
            self._check_modules(folder, model, [name.removesuffix(".weight") for name in adapter.pairs])
            self.unsure = check_base(folder, model)  # what cannot be told of its base, as a sentence
        except CheckpointError as error:
            raise EvaluationError(str(error)) from error
        self.tensors = {
            f"base_model.model.{name.removesuffix('.weight')}.lora_{matrix}.default.weight": tensor
            for name, pair in adapter.pairs.items()
            for matrix, tensor in pair.items()
        }
        self.lora_A, self.scaling = True, {"default": adapter.scaling}

    def _check_modules(self, folder: Path, model: Path, modules: list[str]) -> None:
        foreign = sorted(module for module in modules if not module.endswith(SERVED_MODULES))
        if foreign:
            raise EvaluationError(
                f"{folder} changes {foreign[0]}; the engines serve {', '.join(SERVED_MODULES)} only: merge it"
            )
        layers = {int(module.split(".layers.")[1].split(".")[0]) for module in modules}
        if layers != set(range(self.config.num_hidden_layers)):
            raise EvaluationError(
                f"{folder} has {len(layers)} layers, {model} has {self.config.num_hidden_layers}: another model's adapter"
            )

    def named_parameters(self):
        return self.tensors.items()

    def modules(self):
        return [self]


def load_tokenizer(model: Path) -> Any:
    """The tokenizer of a model directory whose weights are whole, too.

    Raises:
        EvaluationError: it is none, or a file of it is missing or damaged.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        if not Weights(model).files:
            raise CheckpointError(f"{model} holds no tensor; download it again")
        if not (model / "tokenizer.json").is_file():
            raise CheckpointError(f"{model} has no tokenizer.json; copy it from the model that it was made of")
        read_object(model / "tokenizer.json")  # its library names neither file nor place
        AutoConfig.from_pretrained(model)
        return AutoTokenizer.from_pretrained(model)
    except CheckpointError as error:
        raise EvaluationError(str(error)) from error
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"transformers cannot read {model}: {error}") from error


def start(served: Served, decoding: Decoding, tp_size: int, seed: int) -> Any:
    """An engine that serves the model, and the adapter with all its proofs.

    Raises:
        EvaluationError: the adapter does not fit.
    """
    from gptoss_rl.sync.local_engine import engine_arguments, start_engine, start_ray
    from gptoss_rl.sync.lora_sync import LoraSync

    adapter = AdapterFiles(served.adapter, served.model) if served.adapter else None
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM took 12 of 24, and Ray killed what stood beside it
    start_ray(devices=tp_size)
    changes = {"vllm_tensor_parallel_size": tp_size, "enforce_eager": not torch.cuda.is_available()}
    # Without an adapter an empty slot, so that the same code path is measured with and without.
    changes |= {"lora_rank": adapter.rank if adapter else 1}
    engine = start_engine(served.model, engine_arguments(**changes), max_model_len=PROMPT_MAX + decoding.max_tokens, seed=seed)
    if adapter:
        LoraSync(adapter, [engine], mode="adapter", timeout=600).sync()
    return engine
