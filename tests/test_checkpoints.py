"""What a saved adapter holds, and that a crash never leaves a mixture."""

import json
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

from gptoss_rl.errors import GateError
from gptoss_rl.models.random_model import random_adapter, save_random_gpt_oss
from gptoss_rl.training.checkpoints import (
    check_loaded,
    check_settings,
    load_lora_checkpoint,
    random_states,
    save_adapter,
    set_random_states,
    write_folder_atomically,
)

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.mark.parametrize(("name", "value"), [("lora_alpha", 32), ("r", 2), ("target_modules", {"q_proj", "k_proj", "v_proj"})])
def test_another_kind_of_lora_does_not_go_on_from_a_checkpoint(gpt_oss_folder, tmp_path, name: str, value) -> None:
    model = random_adapter(gpt_oss_folder, rank=4)
    save_adapter(model, tmp_path)
    check_settings(model, tmp_path)
    setattr(model.peft_config["default"], name, value)
    with pytest.raises(GateError, match=f"gate checkpoint.*{name} is .* there, .* here"):
        check_settings(model, tmp_path)


def test_another_base_of_the_same_shape_does_not_go_on_from_a_checkpoint(gpt_oss_folder, tmp_path) -> None:
    save_adapter(random_adapter(gpt_oss_folder, rank=4), tmp_path / "adapter")
    save_random_gpt_oss(tmp_path / "other", seed=5)
    with pytest.raises(GateError, match="gate checkpoint.*trained on another base"):
        check_settings(random_adapter(tmp_path / "other", rank=4), tmp_path / "adapter")


def test_a_checkpoint_that_is_not_there_or_cannot_be_read_stops_the_run(gpt_oss_folder, tmp_path) -> None:
    # DeepSpeed itself warns, returns nothing, and would train on from an adapter of zeros.
    model = random_adapter(gpt_oss_folder, rank=4)
    engine = types.SimpleNamespace(module=model, load_checkpoint=lambda *_, **__: (None, {}))
    with pytest.raises(GateError, match="gate checkpoint.*holds no checkpoint to resume from"):
        load_lora_checkpoint(engine, str(tmp_path))
    save_adapter(model, tmp_path / "global_step3" / "adapter")
    (tmp_path / "latest").write_text("global_step3\n")
    with pytest.raises(GateError, match="gate checkpoint.*DeepSpeed could not read .*/global_step3"):
        load_lora_checkpoint(engine, str(tmp_path))


def test_a_matrix_that_was_not_loaded_is_named(gpt_oss_folder, tmp_path) -> None:
    model = random_adapter(gpt_oss_folder, rank=4)
    save_adapter(model, tmp_path)
    check_loaded(model, tmp_path)
    parameter = model.get_parameter("base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight")
    parameter.data[0, 0] = torch.nextafter(parameter.data[0, 0], torch.tensor(2.0))  # the last bit of one number
    with pytest.raises(
        GateError, match=r"loaded 1 of 16 LoRA matrices other than .* lora_B of model.layers.1.self_attn.v_proj"
    ):
        check_loaded(model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "layers.0.self_attn.q_proj.lora_A" not in name}, file)
    with pytest.raises(GateError, match="differ in LoRA matrices: lora_A of model.layers.0.self_attn.q_proj"):
        check_loaded(model, tmp_path)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_checkpoint_is_taken_up_bit_for_bit_under_zero3(tmp_path, dtype: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, ROOT / "tests" / "zero3_checkpoint.py", tmp_path, str(port), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["whole"] is None
    assert "the checkpoint is a mixture" in found["mixed"]
