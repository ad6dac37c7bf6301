"""MXFP4 to BF16: exact, by the format's own definition and by transformers' loader, and refused where it would not be."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Mxfp4Config

from gptoss_rl.models.folder import INDEX, CheckpointError
from gptoss_rl.models.mxfp4 import META, dequantize, dequantize_checkpoint, quantize, quantize_checkpoint
from gptoss_rl.models.random_model import save_random_gpt_oss

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A random BF16 gpt-oss, its MXFP4 form, and that as BF16 again."""
    folder = tmp_path_factory.mktemp("models")
    bf16, mxfp4, again = (folder / name for name in ("bf16", "mxfp4", "again"))
    save_random_gpt_oss(bf16)
    quantize_checkpoint(bf16, mxfp4)
    dequantize_checkpoint(mxfp4, again)
    return bf16, mxfp4, again


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_every_code_and_scale_means_what_the_format_says() -> None:
    # OCP MX v1.0, table 5: sign, two exponent bits with bias 1, one mantissa bit; no exponent bit set is a subnormal.
    def meaning(code: int) -> float:
        sign, exponent, mantissa = -1.0 if code & 8 else 1.0, (code >> 1) & 3, code & 1
        return sign * (2.0 ** (exponent - 1) * (1 + mantissa / 2) if exponent else mantissa / 2)

    block = torch.tensor([low | (low ^ 5) << 4 for low in range(16)], dtype=torch.uint8)
    wanted = [value for low in range(16) for value in (meaning(low), meaning(low ^ 5))]
    for scale in (1, 100, 127, 140, 250):
        got = dequantize(block.reshape(1, 1, 1, 16), torch.tensor([[[scale]]], dtype=torch.uint8))
        assert got.dtype == torch.bfloat16
        assert got.flatten().tolist() == [value * 2.0 ** (scale - 127) for value in wanted]
    with pytest.raises(CheckpointError, match="255"):
        dequantize(block.reshape(1, 1, 1, 16), torch.tensor([[[255]]], dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="BF16 cannot hold"):
        dequantize(block.reshape(1, 1, 1, 16), torch.tensor([[[254]]], dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="do not belong together"):
        dequantize(block.reshape(1, 1, 1, 16), torch.zeros(1, 2, 1, dtype=torch.uint8))


def test_quantizing_takes_the_nearest_value_and_what_is_mxfp4_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 64, 8, generator=generator).bfloat16()
    once = dequantize(*quantize(weight))
    assert torch.equal(dequantize(*quantize(once)), once)
    # The largest of a block lies in [4, 8) scales; steps are at most 2 scales, beyond 6 everything is 6.
    groups, rounded = (w.float().transpose(1, 2).reshape(3, 8, 2, 32) for w in (weight, once))
    scale = 2.0 ** (groups.abs().amax(-1, keepdim=True).log2().floor() - 2)
    assert ((groups - rounded).abs() <= torch.where(groups.abs() > 6 * scale, 2 * scale, scale)).all()
    with pytest.raises(CheckpointError, match="whole blocks"):
        quantize(torch.zeros(1, 33, 4))


def test_transformers_reads_the_same_weights_out_of_it(folders: tuple[Path, Path, Path]) -> None:
    _, mxfp4, again = folders
    theirs = AutoModelForCausalLM.from_pretrained(mxfp4, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16)
    ours = weights(again)
    assert ours.keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.state_dict().items())


def test_only_the_experts_were_touched_and_the_directory_is_whole(folders: tuple[Path, Path, Path]) -> None:
    bf16, mxfp4, again = folders
    before, after, stored = weights(bf16), weights(again), weights(mxfp4)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("gate_up_proj", "down_proj"))}
    assert sum(name.endswith("_blocks") for name in stored) == len(changed) == sum(name.endswith("_scales") for name in stored)
    assert "quantization_config" not in json.loads((again / "config.json").read_text())
    assert json.loads((mxfp4 / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"
    assert (again / "tokenizer.json").read_bytes() == (bf16 / "tokenizer.json").read_bytes()
    index = json.loads((again / INDEX).read_text())
    assert index["weight_map"].keys() == after.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    assert {path.stat().st_mode for path in again.glob("*.safetensors")} == {(again / "config.json").stat().st_mode}
    AutoModelForCausalLM.from_pretrained(again)


def test_shards_are_limited_in_size_and_named_in_order(folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mxfp4, again = folders
    monkeypatch.setattr("gptoss_rl.models.mxfp4.SHARD_BYTES", 60_000)
    dequantize_checkpoint(mxfp4, tmp_path / "many")
    names = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(names) > 2
    assert names == [f"model-{i + 1:05d}-of-{len(names):05d}.safetensors" for i in range(len(names))]
    ours, theirs = weights(tmp_path / "many"), weights(again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("drop", ["shard", "index"])
def test_a_checkpoint_with_half_an_expert_is_refused(folders, tmp_path: Path, drop: str) -> None:
    _, mxfp4, _ = folders
    half = shutil.copytree(mxfp4, tmp_path / "half")
    index = json.loads((half / INDEX).read_text())
    name = next(name for name in index["weight_map"] if name.endswith("_blocks"))
    file = half / index["weight_map"].pop(name)
    (half / INDEX).write_text(json.dumps(index))
    if drop == "shard":
        save_file({key: tensor for key, tensor in load_file(file).items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="has not both" if drop == "shard" else "index.json and the shards disagree"):
        dequantize_checkpoint(half, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def run(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "dequantize_mxfp4.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_refuses_what_it_cannot_do_and_writes_nothing(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    bf16, mxfp4, _ = folders
    out = tmp_path / "out"
    assert run(mxfp4, out).returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    cut = tmp_path / "cut"
    cut.mkdir()
    for path in mxfp4.iterdir():
        data = path.read_bytes()
        (cut / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    for source, target, words in (
        (mxfp4, out, "exists; pass --overwrite"),
        (bf16, tmp_path / "new", "is not quantized, not MXFP4"),
        (tmp_path / "none", tmp_path / "new", "is no model directory"),
        (cut, tmp_path / "new", "is damaged"),
        (mxfp4, mxfp4 / "inside", "are not apart"),
    ):
        done = run(source, target)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(mxfp4, out, "--overwrite").returncode == 0
    assert (out / META).is_file()
