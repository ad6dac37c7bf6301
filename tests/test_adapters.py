"""An adapter on disk is read one way, and belongs to one base: in either of its forms, before anything is merged into it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gptoss_rl.evaluation import AdapterFiles, EvaluationError
from gptoss_rl.models.adapter import BASE_KEY, check_base, read_adapter
from gptoss_rl.models.folder import CheckpointError, Weights, base_fingerprint, weights_digest
from gptoss_rl.models.mxfp4 import dequantize_checkpoint, quantize_checkpoint
from gptoss_rl.models.random_model import random_adapter
from gptoss_rl.sync.lora_sync import lora_parameters, lora_scaling
from gptoss_rl.training.checkpoints import save_adapter
from merge_lora import merge

SETTINGS = [{}, {"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"q_proj": 3}}, {"bias": "all"}]


@pytest.fixture
def adapter(gpt_oss_folder: Path, tmp_path: Path) -> Path:
    save_adapter(random_adapter(gpt_oss_folder, rank=4, std=0.002), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def model(gpt_oss_folder: Path, tmp_path: Path) -> Path:
    """A copy of the base to change."""
    return shutil.copytree(gpt_oss_folder, tmp_path / "model")


def say(adapter: Path, fingerprint: str | None) -> None:
    """Let an adapter carry this fingerprint of its base."""
    path = adapter / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != BASE_KEY}
    save_file(load_file(path), path, metadata=metadata | ({BASE_KEY: fingerprint} if fingerprint else {}))


def change(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] + 0.125
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_serves_an_adapter_and_what_merges_it_understand_the_same(
    gpt_oss_folder: Path, adapter: Path, tmp_path: Path, settings: dict
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    if settings.keys() & {"use_dora", "alpha_pattern", "bias"}:
        with pytest.raises(EvaluationError, match=min(settings)):
            AdapterFiles(adapter, gpt_oss_folder)
        with pytest.raises(CheckpointError, match=min(settings)):
            merge(gpt_oss_folder, adapter, tmp_path / "merged")
        return
    served = AdapterFiles(adapter, gpt_oss_folder)
    assert lora_scaling(served) == merge(gpt_oss_folder, adapter, tmp_path / "merged")["scaling"] == (4.0 if settings else 2.0)
    assert lora_parameters(served).keys() == lora_parameters(random_adapter(gpt_oss_folder, rank=4)).keys()


def test_an_adapter_of_modules_that_the_engines_do_not_serve_is_refused(gpt_oss_folder: Path, adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    rank, hidden, experts = 4, 64, 4
    stem = "base_model.model.model.layers.0.mlp.router.lora_"
    tensors |= {f"{stem}A.weight": torch.zeros(rank, hidden), f"{stem}B.weight": torch.zeros(experts, rank)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(EvaluationError, match=r"changes model.layers.0.mlp.router; the engines serve q_proj"):
        AdapterFiles(adapter, gpt_oss_folder)


def test_both_forms_of_a_base_have_one_fingerprint(gpt_oss_folder: Path, tmp_path: Path) -> None:
    quantize_checkpoint(gpt_oss_folder, tmp_path / "mxfp4")
    dequantize_checkpoint(tmp_path / "mxfp4", tmp_path / "bf16")
    assert len({base_fingerprint(folder) for folder in (gpt_oss_folder, tmp_path / "mxfp4", tmp_path / "bf16")}) == 1


def test_a_base_that_an_adapter_was_merged_into_is_another_one(gpt_oss_folder: Path, adapter: Path, tmp_path: Path) -> None:
    assert check_base(adapter, gpt_oss_folder) is None
    merge(gpt_oss_folder, adapter, tmp_path / "merged")
    assert base_fingerprint(tmp_path / "merged", small_only=True) == base_fingerprint(gpt_oss_folder, small_only=True)
    with pytest.raises(CheckpointError, match="was trained on another base.*not one that something was merged into"):
        check_base(adapter, tmp_path / "merged")


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.embed_tokens.weight",
        *(f"model.layers.1.self_attn.{kind}_proj.weight" for kind in "qkvo"),
        "model.layers.0.self_attn.sinks",
    ],
)
def test_whatever_both_forms_store_tells_one_base_from_another(gpt_oss_folder: Path, model: Path, name: str) -> None:
    change(model, name)
    assert base_fingerprint(model) != base_fingerprint(gpt_oss_folder)


def test_what_an_adapter_does_not_say_of_its_base_is_warned_of(gpt_oss_folder: Path, adapter: Path, model: Path) -> None:
    say(adapter, None)
    assert "does not say which base it was trained on" in check_base(adapter, gpt_oss_folder)
    say(adapter, base_fingerprint(gpt_oss_folder, small_only=True))  # as earlier runs wrote it
    assert "earlier fingerprint" in check_base(adapter, gpt_oss_folder)
    change(model, "model.norm.weight")
    with pytest.raises(CheckpointError, match="was trained on another base"):
        check_base(adapter, model)


def test_a_cut_off_adapter_is_named(gpt_oss_folder: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for read in (lambda: read_adapter(adapter), lambda: check_base(adapter, gpt_oss_folder)):
        with pytest.raises(CheckpointError, match="adapter_model.safetensors is damaged"):
            read()


@pytest.mark.parametrize("fields", [{"r": 0}, {"r": None}, {"lora_alpha": "8"}])
def test_a_scaling_that_is_no_number_is_refused(adapter: Path, fields: dict) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(CheckpointError, match="no rank and no factor"):
        read_adapter(adapter)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_description_of_a_model_is_named(model: Path, name: str, text: str) -> None:
    (model / name).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{name} (is no JSON|holds no JSON object)"):
        Weights(model).shapes()


def test_a_replaced_model_has_another_digest(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_digest(model)
    assert weights_digest(model) == before
    change(model, "lm_head.weight")
    assert weights_digest(model) != before
    # A large file: the same header and size, but written at another time.
    monkeypatch.setattr("gptoss_rl.models.folder.WHOLE", 0)
    before = weights_digest(model)
    change(model, "lm_head.weight")
    assert weights_digest(model) != before
