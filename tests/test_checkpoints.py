"""What a saved adapter holds, and that a crash never leaves a mixture."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import GptOssForCausalLM

from gptoss_rl.checkpoints import random_states, save_adapter, set_random_states, write_folder_atomically
from gptoss_rl.errors import GateError
from gptoss_rl.random_model import random_adapter


def test_the_saved_adapter_is_an_adapter_and_nothing_else(gpt_oss_folder, tmp_path) -> None:
    model = random_adapter(gpt_oss_folder, rank=4)
    save_adapter(model, tmp_path / "adapter")
    names = {p.name for p in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 4 * 2  # layers, targets, A and B
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["inference_mode"] is True


def test_peft_loads_what_was_saved(gpt_oss_folder, tmp_path) -> None:
    model = random_adapter(gpt_oss_folder, rank=4)
    save_adapter(model, tmp_path / "adapter")
    base = GptOssForCausalLM.from_pretrained(gpt_oss_folder, dtype=torch.float32, attn_implementation="eager")
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_an_adapter_that_is_not_finite_leaves_the_old_one(gpt_oss_folder, tmp_path) -> None:
    model = random_adapter(gpt_oss_folder, rank=4)
    save_adapter(model, tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] = float("inf")
    with pytest.raises(GateError, match="not|NaN"):
        save_adapter(model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_a_write_that_fails_leaves_the_old_folder(tmp_path) -> None:
    folder = tmp_path / "out"
    write_folder_atomically(folder, lambda path: (path / "a").write_text("old"))

    def fails(path) -> None:
        (path / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder_atomically(folder, fails)
    assert (folder / "a").read_text() == "old"
    write_folder_atomically(folder, lambda path: (path / "b").write_text("new"))
    assert [p.name for p in folder.iterdir()] == ["b"]


def test_random_states_are_restored() -> None:
    states = random_states()
    first = (torch.rand(3), __import__("random").random(), __import__("numpy").random.rand())
    set_random_states(states)
    second = (torch.rand(3), __import__("random").random(), __import__("numpy").random.rand())
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]
