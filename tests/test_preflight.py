"""Each stop and each warning of the preflight, provoked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models

from gptoss_rl import doctor
from gptoss_rl.doctor import (
    OK,
    STOP,
    UNKNOWN,
    WARNING,
    Machine,
    check_checkpoints,
    check_data,
    check_flag_combinations,
    check_hardware,
    check_host,
    check_software,
    neighbour_links,
    probe,
    trainer_memory,
)
from gptoss_rl.local_engine import engine_arguments
from gptoss_rl.prompts import HARMONY_MARKERS

ROOT = Path(__file__).resolve().parent.parent
A30 = {"name": "A30", "memory_gb": 25.2, "capability": 8.0, "driver": 575}


def node(count: int = 8, **changes) -> Machine:
    return Machine(
        [{**A30, **changes} for _ in range(count)], memory_gb=512, shm_gb=64, disk_gb=500, links=["NV4"] * (count // 2)
    )


def arguments(**changes):
    good = {
        "vllm_num_engines": 2, "vllm_tensor_parallel_size": 2, "actor_num_gpus_per_node": 4, "micro_train_batch_size": 2,
        "micro_batch_max_tokens": 5120, "prompt_max_len": 1024, "generate_max_len": 4096, "offload": True, "pretrain": "no",
    }  # fmt: skip
    return engine_arguments(**{**good, **changes})


def levels(findings) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


def test_a_good_node_passes() -> None:
    found = check_hardware(arguments(), node()) + check_host(arguments(), node())
    assert set(levels(found).values()) <= {OK, WARNING}
    assert all(finding.level == OK for finding in found if "memory of each trainer" not in finding.check)


@pytest.mark.parametrize(
    ("machine", "changes", "check", "level", "remedy"),
    [
        (node(4), {}, "GPUs", STOP, "RAY_ADDRESS"),
        (node(capability=7.5), {}, "compute capability", STOP, "Ampere"),
        (node(driver=525), {}, "driver", WARNING, "driver 570"),
        (node(), {"micro_batch_max_tokens": None}, "memory of each trainer card (estimate)", STOP, "--micro_batch_max_tokens"),
        (node(memory_gb=22.0), {}, "memory of each trainer card (estimate)", WARNING, "--generate_max_len"),
        (
            node(memory_gb=10.0),
            {"vllm_tensor_parallel_size": 1},
            "memory of each engine card (estimate)",
            STOP,
            "--vllm_tensor",
        ),
    ],
)
def test_hardware_that_will_not_do(machine, changes, check, level, remedy) -> None:
    finding = next(f for f in check_hardware(arguments(**changes), machine) if f.check == check)
    assert finding.level == level
    assert remedy in finding.remedy


def test_slow_links_are_a_warning() -> None:
    machine = node()
    machine.links = ["NV4", "SYS", "PIX", "PIX"]
    assert levels(check_hardware(arguments(), machine))["links between neighbouring GPUs"] == WARNING


def test_without_gpus_it_says_what_it_did_not_check() -> None:
    (finding,) = check_hardware(arguments(), Machine())
    assert finding.level == UNKNOWN
    assert "were not checked" in finding.seen


@pytest.mark.parametrize(
    ("machine", "check", "level"),
    [
        (Machine([], 40, 64, 500), "host memory", STOP),
        (Machine([], 512, 1, 500), "shared memory", WARNING),
        (Machine([], 512, 64, 2), "disk", STOP),
    ],
)
def test_a_host_that_will_not_do(machine, check, level) -> None:
    found = levels(check_host(arguments(), machine))
    assert found.pop(check) == level
    assert set(found.values()) == {OK}


def test_the_measured_memory_of_attention_is_what_is_estimated() -> None:
    # 14.05 GB for 1 x 5,120 tokens and 28.1 GB for 2, measured (results/2026-11-23_actor-step); 2 % of rounding.
    for limit, wanted in ((5120, 14.05), (None, 28.1)):
        assert trainer_memory(arguments(micro_batch_max_tokens=limit))["eager attention"] == pytest.approx(wanted, rel=0.02)


def test_the_topology_matrix_is_read() -> None:
    text = "\tGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity\nGPU0\t X \tNV4\tSYS\tSYS\t0-31\nGPU1\tNV4\t X \tSYS\tSYS\t0-31\n" \
           "GPU2\tSYS\tSYS\t X \tPIX\t32-63\nGPU3\tSYS\tSYS\tPIX\t X \t32-63\n\nLegend:\n  X = Self\n"  # fmt: skip
    assert neighbour_links(text) == ["NV4", "PIX"]


def test_this_machine_can_be_probed() -> None:
    machine = probe(ROOT)
    assert machine.memory_gb > 1
    assert machine.disk_gb > 0


def test_wrong_versions_and_a_broken_stack_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(levels(check_software(ROOT / "requirements" / "cpu.txt")).values()) == {OK}
    (tmp_path / "x.txt").write_text("torch==0.1.0\npeft==99\n")
    finding = check_software(tmp_path / "x.txt")[1]
    assert finding.level == STOP
    assert "pinned 0.1.0" in finding.seen
    from gptoss_rl import patch_stack

    def broken():
        raise patch_stack.PatchStackError("edited by hand")

    monkeypatch.setattr(patch_stack, "check_stack", broken)
    assert check_software(ROOT / "requirements" / "cpu.txt")[0] == doctor.Finding(
        STOP, "patch stack", "edited by hand", "bash apply_patches.sh"
    )


def model(folder: Path, markers: bool = True, **config) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "vocab_size": 10, **config}))
    tokenizer = Tokenizer(models.BPE())
    if markers:
        tokenizer.add_special_tokens([AddedToken(m, special=True) for m in HARMONY_MARKERS])
    else:
        tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("<|>startendmgchlor")}, merges=[]))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_checkpoints_that_do_not_belong_together_stop(tmp_path: Path) -> None:
    good, other = model(tmp_path / "good"), model(tmp_path / "other", hidden_size=96)
    quantised = model(tmp_path / "quantised", quantization_config={"quant_method": "mxfp4"})
    text = model(tmp_path / "text", markers=False)

    def check(trainer: Path, engine: Path):
        return check_checkpoints(engine_arguments(pretrain=str(trainer), vllm_pretrain=str(engine)))

    assert [f.level for f in check(good, quantised)] == [OK, OK]
    assert "differ in hidden_size" in check(good, other)[0].seen
    assert "is quantised" in check(quantised, quantised)[0].seen
    assert "several tokens" in check(text, text)[-1].seen
    assert "no model directory" in check(tmp_path / "none", good)[0].seen
    (good / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert "lacks model-1.safetensors" in check(good, good)[0].seen
    (other / "tokenizer.json").unlink()
    assert "is missing" in check(other, other)[-1].seen


def test_bad_data_and_bad_flags_stop(tmp_path: Path) -> None:
    args = engine_arguments(prompt_data=str(tmp_path / "no.jsonl"), label_key="label", input_key="input")
    assert check_data(args)[0].level == STOP
    path = tmp_path / "p.jsonl"
    path.write_text('{"input": "What is 1 + 1?", "label": "1,2"}\n')
    args.prompt_data, args.eval_dataset = str(path), None
    assert "labels must be integers" in check_data(args)[0].seen
    assert {f.level for f in check_flag_combinations(args)} == {STOP}


@pytest.mark.parametrize(("words", "code"), [(["--config", "a30"], 1), (["--config", "nothing"], 1)])
def test_the_command_exits_with_what_it_found(words: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "preflight.py", *words, "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    if "nothing" in words:
        assert "there are 20b, a29b, a30, a31, tiny_cpu" in done.stderr
    else:
        findings = json.loads(done.stdout)
        assert {"level", "check", "seen", "remedy"} == set(findings[0])
        assert all(f["remedy"] for f in findings if f["level"] in (STOP, WARNING))
