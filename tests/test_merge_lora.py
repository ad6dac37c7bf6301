"""Merging: the same weights as PEFT's, everything else untouched, and refused where it would be another model."""

import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssForCausalLM

from gptoss_rl.models.folder import CheckpointError
from gptoss_rl.models.random_model import LORA_TARGETS, random_adapter, set_random_B
from gptoss_rl.training.checkpoints import save_adapter
from merge_lora import merge, merge_weight, rounding_of

ROOT = Path(__file__).resolve().parent.parent
IDS = torch.arange(5, 45).unsqueeze(0)
FIRST = "model.layers.0.self_attn.q_proj.weight"
FIRST_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture(scope="module")
def base(gpt_oss_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random gpt-oss in several shards, its tokenizer, and files that are about these very weights."""
    folder = tmp_path_factory.mktemp("base") / "sharded"
    model = GptOssForCausalLM.from_pretrained(gpt_oss_folder, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(gpt_oss_folder / name, folder / name)
    (folder / "manifest.json").write_text("checksums of the base")
    (folder / "original").mkdir()
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter as this repository writes them."""
    save_adapter(random_adapter(base, rank=4), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def own_base(base: Path, tmp_path: Path) -> Path:
    """A copy of the base to damage."""
    return shutil.copytree(base, tmp_path / "base")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shard_of(base: Path, name: str) -> Path:
    return base / json.loads((base / "model.safetensors.index.json").read_text())["weight_map"][name]


def change_config(folder: Path, name: str, **fields) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    save_file({new: t.contiguous() for name, tensor in tensors.items() for new, t in change(name, tensor)}, path)


def pefts(base: Path, adapter: Path) -> GptOssForCausalLM:
    """PEFT's own merge of an adapter directory, in float32, rounded once."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().to(torch.bfloat16)


def assert_refused(base: Path, adapter: Path, output: Path, message: str) -> None:
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(CheckpointError, match=message):
        merge(base, adapter, output)
    assert sorted(output.parent.rglob("*")) == before


def test_the_merged_model_is_pefts(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    wanted = dict(pefts(base, adapter).named_parameters())
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, wanted.pop(name)), name
    assert wanted == {}
    with torch.no_grad():
        # The adapter changes the logits by far more than rounding the merged weights does.
        adapted = random_adapter(base, rank=4).eval()(IDS).logits
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(IDS).logits
        error = (merged.float()(IDS).logits - adapted).abs().mean()
        assert error < 0.05 * (plain - adapted).abs().mean()


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"lora_alpha": 3}, {"target_modules": ["q_proj"]}])
def test_scaling_and_targets_are_pefts(base: Path, tmp_path: Path, settings: dict) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": list(LORA_TARGETS), **settings})
    model = get_peft_model(model, config)
    set_random_B(model, seed=3)
    model.save_pretrained(tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "out")
    wanted = dict(pefts(base, tmp_path / "adapter").named_parameters())
    got = weights(tmp_path / "out")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in got.items())


def test_everything_else_is_the_bases_byte_for_byte(base: Path, adapter: Path, tmp_path: Path) -> None:
    meta = merge(base, adapter, tmp_path / "out")
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {path.name for path in base.iterdir()} - {"manifest.json", "original"} | {"merge_meta.json"}
    assert meta["left_behind"] == ["manifest.json", "original"]
    adapted = {shard_of(base, FIRST.replace("0.", f"{layer}.", 1).replace("q_proj", target)).name
               for layer in (0, 1) for target in LORA_TARGETS}  # fmt: skip
    for name in made - {"merge_meta.json"}:
        assert ((base / name).read_bytes() == (tmp_path / "out" / name).read_bytes()) == (name not in adapted), name
    before, after = weights(base), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if re.search(r"self_attn\.[qkvo]_proj\.weight", name)}


def test_a_single_file_checkpoint_merges_too(gpt_oss_folder: Path, adapter: Path, tmp_path: Path) -> None:
    assert merge(gpt_oss_folder, adapter, tmp_path / "out")["merged_weights"] == 8
    assert not torch.equal(weights(gpt_oss_folder)[FIRST], weights(tmp_path / "out")[FIRST])


def test_the_meta_file_says_what_was_merged_into_what(base: Path, adapter: Path, tmp_path: Path) -> None:
    meta = merge(base, adapter, tmp_path / "out")
    assert meta == json.loads((tmp_path / "out" / "merge_meta.json").read_text())
    assert (meta["rank"], meta["scaling"], meta["merged_weights"]) == (4, 2.0, 8)
    assert meta["adapter_sha256"] == sha256(adapter / "adapter_model.safetensors")
    assert meta["base_shards"] == {path.name: sha256(path) for path in base.glob("*.safetensors")}
    assert meta["shards"] == {path.name: sha256(path) for path in (tmp_path / "out").glob("*.safetensors")}
    lines = "".join(f"{meta['base_shards'][name]}  {name}\n" for name in sorted(meta["base_shards"]))
    assert meta["base_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert set(meta["rounding_by_projection"]) == set(LORA_TARGETS)
    assert len(meta["rounding_by_weight"]) == 8


@pytest.mark.parametrize(("rms", "share"), [(1e-6, 0.99), (1e-5, 0.90), (5e-5, 0.55), (1e-4, 0.32), (5e-4, 0.07)])
def test_the_share_that_rounding_swallows_is_measured(rms: float, share: float) -> None:
    # The shares are those measured for bf16 weights of deviation 0.02; a rank as large as the weight makes the delta
    # as good as any.
    torch.manual_seed(0)
    weight = (torch.randn(512, 512) * 0.02).bfloat16()
    pair = {"A": torch.eye(512), "B": torch.randn(512, 512) * rms}
    merged, part = merge_weight(weight, pair, 1.0)
    rounding = rounding_of([part])
    assert rounding["lost_share"] == pytest.approx(share, abs=0.02)
    assert rounding["rms_delta"] == pytest.approx(rms, rel=0.01)
    assert rounding["unchanged_share"] == pytest.approx((merged == weight).float().mean().item())


def test_an_untrained_adapter_changes_nothing(base: Path, tmp_path: Path) -> None:
    model = random_adapter(base, rank=4)
    set_random_B(model, seed=0, std=0.0)
    save_adapter(model, tmp_path / "adapter")
    meta = merge(base, tmp_path / "adapter", tmp_path / "out")
    assert meta["shards"] == meta["base_shards"]
    assert meta["rounding"] == {"rms_delta": 0.0, "lost_share": 0.0, "unchanged_share": 1.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern = "),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern = "),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = "),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
        ({"a_field_of_a_later_peft": True}, "a_field_of_a_later_peft"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"r": 8}, "not of rank 8"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_name(
    base: Path, adapter: Path, tmp_path: Path, fields: dict, message: str
) -> None:
    change_config(adapter, "adapter_config.json", **fields)
    assert_refused(base, adapter, tmp_path / "out", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, t: [] if n == FIRST_B else [(n, t)], rf"{re.escape(FIRST)} has not both"),
        (
            lambda n, t: [(n.replace("layers.1", "layers.7"), t)],
            r"4 of 8 adapted weights are not in .*model\.layers\.7\.self_attn",
        ),
        (lambda n, t: [(n, t[:-1] if n == FIRST_B else t)], r"q_proj\.weight is \(128, 64\) in .* and \(127, 64\)"),
        (lambda n, t: [(n, t * float("nan") if n == FIRST_B else t)], "lora_B.weight holds values that are not finite"),
        (lambda n, t: [(n, t * 1e30)], "not finite after merging"),
        (lambda n, t: [(n, t), (n.replace("weight", "default.weight"), t.clone())], "under two names"),
        (lambda n, t: [(n.replace("lora_B.weight", "lora_magnitude_vector.weight"), t)], "lora_magnitude_vector"),
        (lambda n, t: [(n.replace("lora_B.weight", "base_layer.bias"), t)], r"base_layer\.bias"),
        (lambda n, t: [], "no module has not both"),
    ],
)
def test_adapter_tensors_that_do_not_fit_are_named(base: Path, adapter: Path, tmp_path: Path, change, message: str) -> None:
    change_tensors(adapter / "adapter_model.safetensors", change)
    assert_refused(base, adapter, tmp_path / "out", message)


def test_a_quantized_base_is_refused_with_the_remedy(own_base: Path, adapter: Path, tmp_path: Path) -> None:
    change_config(own_base, "config.json", quantization_config={"quant_method": "mxfp4"})
    assert_refused(own_base, adapter, tmp_path / "out", r"quantized \(mxfp4\); dequantize it once .python dequantize_mxfp4.py")


def test_a_weight_that_is_no_float_is_refused(own_base: Path, adapter: Path, tmp_path: Path) -> None:
    change_tensors(shard_of(own_base, FIRST), lambda n, t: [(n, t.to(torch.uint8) if n == FIRST else t)])
    assert_refused(own_base, adapter, tmp_path / "out", "q_proj.weight is U8")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("missing", "is missing"), ("cut", "it is damaged"), ("text", "no safetensors file"), ("empty", "no safetensors file")],
)
def test_a_damaged_shard_is_named_before_anything_is_written(
    own_base: Path, adapter: Path, tmp_path: Path, kind: str, message: str
) -> None:
    shard = sorted(own_base.glob("*.safetensors"))[-1]
    data = shard.read_bytes()
    shard.unlink()
    if kind != "missing":
        shard.write_bytes({"cut": data[:-1], "text": b"version https://git-lfs\n" * 9, "empty": b""}[kind])
    assert_refused(own_base, adapter, tmp_path / "out", f"{re.escape(str(shard))} .*{message}")


def test_an_index_that_lies_is_refused(own_base: Path, adapter: Path, tmp_path: Path) -> None:
    path = own_base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][FIRST] = shard_of(own_base, "lm_head.weight").name
    path.write_text(json.dumps(index))
    assert_refused(own_base, adapter, tmp_path / "out", "index.json and shards disagree")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors.index.json"])
def test_a_folder_that_is_no_checkpoint_is_refused(own_base: Path, adapter: Path, tmp_path: Path, missing: str) -> None:
    (own_base / missing).unlink()
    assert_refused(own_base, adapter, tmp_path / "out", missing)


def test_a_full_disk_is_noticed_before_writing(own_base: Path, adapter: Path, tmp_path: Path) -> None:
    # A shard larger than the disk, without the bytes: the file is a hole. It comes last, behind a weight that cannot be
    # merged, so that this test would not fill the disk if the check were gone.
    change_tensors(adapter / "adapter_model.safetensors", lambda n, t: [(n, t * 1e30)])
    size = 2 * shutil.disk_usage(tmp_path).total
    header = json.dumps({"extra": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with (own_base / "z.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    path = own_base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["extra"] = "z.safetensors"
    path.write_text(json.dumps(index))
    assert_refused(own_base, adapter, tmp_path / "out", r"takes [0-9.]+ GB, .* has [0-9.]+ GB free")


def test_memory_does_not_grow_with_the_shard(gpt_oss_folder: Path, adapter: Path, tmp_path: Path) -> None:
    size = 400 << 20
    big = shutil.copytree(gpt_oss_folder, tmp_path / "big")
    tensors = load_file(big / "model.safetensors")
    save_file({**tensors, "model.extra": torch.zeros(size, dtype=torch.uint8)}, big / "model.safetensors")
    del tensors
    code = (
        "import sys, re, pathlib, torch, merge_lora\n"
        "torch.set_num_threads(1)\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "merge_lora.merge(*map(pathlib.Path, sys.argv[1:]))\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, big, adapter, tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > size
    assert int(done.stdout) * 1024 < size / 2


@pytest.mark.parametrize("place", ["base", "base/merged", "."])
def test_the_output_lies_apart_from_its_inputs(own_base: Path, adapter: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(CheckpointError, match="not apart"):
        merge(own_base, adapter, tmp_path / place, overwrite=True)
    assert (own_base / "config.json").is_file()


def test_a_directory_of_others_is_never_replaced(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="was not made by this script"):
        merge(base, adapter, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").is_file()


def run_command(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "merge_lora.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_reports_and_does_not_overwrite_unasked(base: Path, adapter: Path, tmp_path: Path) -> None:
    words = ["--base", base, "--adapter", adapter, "--output", tmp_path / "out"]
    first = run_command(*words)
    assert first.returncode == 0, first.stderr
    assert "8 weights merged" in first.stdout
    assert re.search(r"q_proj +[0-9.e-]+ +[0-9.]+% +[0-9.]+%", first.stdout)
    assert "not copied: manifest.json, original" in first.stdout
    second = run_command(*words)
    assert second.returncode != 0
    assert "--overwrite" in second.stderr
    assert "Traceback" not in second.stderr
    third = run_command(*words, "--overwrite")
    assert third.returncode == 0, third.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out"]


def test_a_failed_overwrite_leaves_the_old_output(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(base, adapter, tmp_path / "out")
    before = {path.name: sha256(path) for path in (tmp_path / "out").iterdir()}
    # Noticed while the weight is being merged, after other shards have been written.
    change_tensors(adapter / "adapter_model.safetensors", lambda n, t: [(n, t * 1e30 if "layers.1" in n else t)])
    with pytest.raises(CheckpointError, match="not finite after merging"):
        merge(base, adapter, tmp_path / "out", overwrite=True)
    assert {path.name: sha256(path) for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out"]
