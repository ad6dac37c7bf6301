"""Merging: the same function as PEFT's, shard by shard, and refused where it would be another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

from gptoss_rl.checkpoints import save_adapter
from gptoss_rl.random_model import random_adapter
from merge_lora import MergeError, merge, read_adapter

ROOT = Path(__file__).resolve().parent.parent
IDS = torch.arange(5, 45).unsqueeze(0)


@pytest.fixture(scope="module")
def base(gpt_oss_folder: Path, tmp_path_factory) -> Path:
    """The random gpt-oss in several shards."""
    folder = tmp_path_factory.mktemp("base") / "sharded"
    model = GptOssForCausalLM.from_pretrained(gpt_oss_folder, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    save_adapter(random_adapter(base, rank=4), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_merged_model_is_pefts(base: Path, adapter: Path, tmp_path: Path) -> None:
    meta = merge(base, adapter, tmp_path / "out")
    merged = GptOssForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    expected = random_adapter(base, rank=4).merge_and_unload().to(torch.bfloat16)
    for (name, got), (_, wanted) in zip(merged.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(got, wanted), name
    assert 0 < meta["lost_share"] < 1
    assert meta["merged_weights"] == 8
    with torch.no_grad():
        plain = GptOssForCausalLM.from_pretrained(base, dtype=torch.bfloat16)(IDS).logits
        assert not torch.allclose(merged(IDS).logits, plain, atol=0.01)


def test_shards_and_index_are_the_bases(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()} - {"merge_meta.json"}
    assert names == {p.name for p in base.iterdir()}
    untouched = "model.embed_tokens.weight"
    shard = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"][untouched]
    assert torch.equal(load_file(base / shard)[untouched], load_file(tmp_path / "out" / shard)[untouched])


def test_a_single_file_checkpoint_merges_too(gpt_oss_folder: Path, adapter: Path, tmp_path: Path) -> None:
    assert merge(gpt_oss_folder, adapter, tmp_path / "out")["merged_weights"] == 8


def change_config(folder: Path, name: str, **fields) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"use_dora": True}, "use_dora"), ({"use_rslora": True}, "use_rslora"), ({"bias": "all"}, "bias"),
     ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")],
)  # fmt: skip
def test_an_adapter_of_another_kind_is_refused(adapter: Path, fields: dict, word: str) -> None:
    change_config(adapter, "adapter_config.json", **fields)
    with pytest.raises(MergeError, match=word):
        read_adapter(adapter)


def test_a_quantised_base_is_refused(gpt_oss_folder: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "quantised").mkdir()
    config = {
        **json.loads((gpt_oss_folder / "config.json").read_text()),
        "quantization_config": {"quant_method": "mxfp4"},
    }
    (tmp_path / "quantised" / "config.json").write_text(json.dumps(config))
    with pytest.raises(MergeError, match="BF16"):
        merge(tmp_path / "quantised", adapter, tmp_path / "out")


def test_an_adapted_weight_that_the_base_lacks_is_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.1", "layers.7"): tensor for name, tensor in tensors.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(MergeError, match=r"4 adapted weights are not in .*model\.layers\.7\.self_attn"):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_module_without_B_is_refused(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(MergeError, match=r"layers\.0\.self_attn\.q_proj\.weight has not both"):
        read_adapter(adapter)


def test_the_command_does_not_overwrite_unasked(base: Path, adapter: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "merge_lora.py",
        "--base",
        base,
        "--adapter",
        adapter,
        "--output",
        tmp_path / "out",
    ]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "8 weights merged" in first.stdout
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "--overwrite" in second.stderr
    third = subprocess.run([*command, "--overwrite"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert third.returncode == 0
