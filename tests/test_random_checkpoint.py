"""A random checkpoint in the released layout: what it holds, that both forms are one model, and that it is not chaotic."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from gptoss_rl.models.folder import CheckpointError, Weights
from gptoss_rl.models.mxfp4 import dequantize_checkpoint
from gptoss_rl.models.random_checkpoint import Shape, packed_bytes, plain_bytes, save_random_checkpoint

SMALL = Shape(layers=6, hidden=128, experts=6, intermediate=64, heads=8, kv_heads=2, head_dim=32, vocabulary=400)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("random")
    save_random_checkpoint(folder / "a-mxfp4", folder / "a-bf16", SMALL)
    return folder / "a-mxfp4", folder / "a-bf16"


def same(a: Path, b: Path) -> bool:
    left, right = Weights(a), Weights(b)
    return sorted(left.files) == sorted(right.files) and all(torch.equal(left.read(n), right.read(n)) for n in left.files)


def test_both_forms_are_one_model(made: tuple[Path, Path], tmp_path: Path) -> None:
    dequantize_checkpoint(made[0], tmp_path / "again")
    assert same(tmp_path / "again", made[1])


def test_names_and_shapes_are_the_models_own(made: tuple[Path, Path]) -> None:
    config = GptOssConfig.from_pretrained(made[1])
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in GptOssForCausalLM(config).state_dict().items()}
    assert Weights(made[1]).shapes() == wanted
    packed = Weights(made[0]).shapes()
    assert packed["model.layers.5.mlp.experts.gate_up_proj_blocks"] == (6, 128, 4, 16)
    assert packed["model.layers.5.mlp.experts.down_proj_scales"] == (6, 128, 2)
    assert json.loads((made[0] / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"


def test_the_defaults_are_the_released_models_sizes() -> None:
    # 13.76 GB of files and 20.9 B parameters: openai/gpt-oss-20b, model.safetensors.index.json.
    assert plain_bytes(Shape()) + packed_bytes(Shape()) == pytest.approx(13.76e9, rel=0.01)


def test_a_seed_makes_one_model(made: tuple[Path, Path], tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path / "same", None, SMALL)
    save_random_checkpoint(tmp_path / "other", None, SMALL, seed=1)
    assert same(tmp_path / "same", made[0])
    assert not same(tmp_path / "other", made[0])


def test_rounding_stays_rounding(made: tuple[Path, Path]) -> None:
    tokens = torch.randint(0, SMALL.vocabulary, (4, 256), generator=torch.Generator().manual_seed(0))

    def logprobs(dtype: torch.dtype, sinks: bool = True) -> torch.Tensor:
        model = GptOssForCausalLM.from_pretrained(made[1], dtype=dtype, attn_implementation="eager").train()
        for layer in model.model.layers if not sinks else ():
            layer.self_attn.sinks.data.fill_(-1e4)
        with torch.no_grad():
            return torch.log_softmax(model(tokens).logits.float(), -1)[:, :-1].gather(2, tokens[:, 1:, None])

    exact = logprobs(torch.float32)
    rounding = (logprobs(torch.bfloat16) - exact).abs().mean().item()
    fault = (logprobs(torch.float32, sinks=False) - exact).abs().mean().item()
    assert 0 < rounding < 0.02, rounding
    assert fault > rounding, (fault, rounding)


def test_what_is_there_is_kept(made: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="exists; pass --overwrite"):
        save_random_checkpoint(made[0], None, SMALL)
    with pytest.raises(ValueError, match="multiples of 32"):
        save_random_checkpoint(made[0].with_name("b"), None, Shape(hidden=100))
    assert not list(made[0].parent.glob(".*partial"))
