"""What the preflight finds of cards, host and kernels: each stop and each warning, provoked."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from made_machine import A30, ENGINE, TRAINER, arguments, host, levels, model, node

from gptoss_rl.doctor import OK, STOP, UNKNOWN, WARNING, Machine, probe
from gptoss_rl.doctor import machine as machine_module
from gptoss_rl.doctor.hardware import check_devices, check_host
from gptoss_rl.doctor.kernels import attention_backend, check_kernels, mxfp4_backend
from gptoss_rl.doctor.machine import host_memory_of, neighbour_links, read_gpus, visible
from gptoss_rl.doctor.sizes import lora_parameters, trainer_memory

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "VLLM_ATTENTION_BACKEND", "VLLM_MXFP4_USE_MARLIN", "VLLM_USE_FLASHINFER_MOE_MXFP4_BF16"):
        monkeypatch.delenv(name, raising=False)


def test_a_good_node_passes() -> None:
    found = levels([*check_devices(arguments(), node()), *check_kernels(arguments(), node()),
                    *check_host(arguments(), node(), 200, 1000)])  # fmt: skip
    # Whether an A30 holds a full-length sample beside what the allocator keeps has not been seen.
    assert found.pop(TRAINER) == WARNING
    assert set(found.values()) == {OK}
    assert {"GPUs", "attention backend", "MXFP4 kernel", ENGINE, "object store", "disk"} <= set(found)


@pytest.mark.parametrize(
    ("machine", "changes", "check", "level", "remedy"),
    [
        (node(4), {}, "GPUs", STOP, "RAY_ADDRESS"),
        (node(0), {}, "GPUs", STOP, "RAY_ADDRESS"),
        (host(), {"num_devices": 5}, "GPUs", STOP, "--num_devices 8"),
        (node(capability=7.5), {}, "compute capability", STOP, "Ampere"),
        (node(driver=575), {}, "driver", WARNING, "driver 580"),
        (node(used_gb=20.0), {}, "cards in use", WARNING, "nvidia-smi"),
        (node(links=["NV4", "SYS", "PIX", "PIX"]), {}, "links between neighbouring GPUs", WARNING, "CUDA_VISIBLE_DEVICES"),
        (node(), {"micro_batch_max_tokens": None}, TRAINER, STOP, "--micro_batch_max_tokens 5120, or lower --generate_max_len"),
        (node(), {"micro_batch_max_tokens": 10240}, TRAINER, STOP, "--micro_batch_max_tokens 5120, or"),
        (node(), {"loss_normalizer": "token_mean"}, TRAINER, STOP, "lower --micro_train_batch_size, or"),
        (node(), {"offload": False}, TRAINER, STOP, "or pass --offload"),
        (node(memory_gb=22.0), {}, TRAINER, WARNING, "lower --generate_max_len"),
        (node(memory_gb=32.0), {}, TRAINER, OK, ""),
        (node(memory_gb=10.0), {"vllm_tensor_parallel_size": 1}, ENGINE, STOP, "--vllm_tensor"),
        (node(memory_gb=12.5), {}, ENGINE, WARNING, "--vllm_tensor"),
    ],
)
def test_devices_that_will_not_do(machine, changes, check, level, remedy) -> None:
    finding = next(f for f in check_devices(arguments(**changes), machine) if f.check == check)
    assert finding.level == level
    assert remedy in finding.remedy


def test_without_gpus_it_says_what_it_did_not_check(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_devices(arguments(), Machine())
    assert levels(found) == {"GPUs": UNKNOWN, TRAINER: UNKNOWN, ENGINE: UNKNOWN}
    assert "were not checked" in found[0].seen
    assert "20.5 GB (eager attention 14.1" in found[1].seen  # what the run needs can be said all the same
    assert all("of a card that is not here" in finding.seen for finding in found[1:])
    assert levels(check_kernels(arguments(), Machine())) == {"engine kernels": UNKNOWN}
    assert levels(check_devices(arguments(num_devices=8), Machine())) == {"GPUs": OK}
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert levels(check_devices(arguments(), node(4))) == {"GPUs": UNKNOWN, TRAINER: UNKNOWN, ENGINE: UNKNOWN}
    assert levels(check_host(arguments(), node(), 1, 1))["object store"] == UNKNOWN


@pytest.mark.parametrize(
    ("machine", "changes", "check", "level", "remedy"),
    [
        (host(memory_gb=40), {}, "host memory", STOP, "a host with more memory"),
        (host(available_gb=40), {}, "host memory", WARNING, "what else runs"),
        (host(shm_gb=1), {}, "shared memory", WARNING, "--shm-size"),
        (host(shm_gb=10), {"rollout_batch_size": 8192}, "object store", WARNING, "--rollout_batch_size"),
        (host(), {"rollout_batch_size": 256, "num_devices": 8}, "object store", WARNING, "--rollout_batch_size"),
        (host(disk_gb=1.2), {}, "disk", STOP, "--max_ckpt_num"),
        (host(temporary_used=0.96), {}, "temporary disk", WARNING, "RAY_TMPDIR"),
    ],
)
def test_a_host_that_will_not_do(machine, changes, check, level, remedy) -> None:
    found = check_host(arguments(**changes), machine, 200, 200)
    finding = next(f for f in found if f.check == check)
    assert (finding.level, remedy in finding.remedy) == (level, True)
    assert {f.level for f in found if f.check != check} == {OK}


def test_estimates_are_what_was_measured_or_counted() -> None:
    # 14.05 GB for 1 x 5,120 tokens and 28.1 GB for 2, measured (results/2026-11-23_actor-step); 2 % of rounding.
    for limit, wanted in ((5120, 14.05), (None, 28.1)):
        assert trainer_memory(arguments(micro_batch_max_tokens=limit))["eager attention"] == pytest.approx(wanted, rel=0.02)
    # r = 32 on q, k, v and o of gpt-oss-20b: 24 layers x 32 x (2 x (2880 + 4096) + 2 x (2880 + 512)).
    assert lora_parameters(arguments()) == 15_925_248


def test_a_smaller_model_has_no_estimate_of_the_20b(tmp_path: Path) -> None:
    args = arguments(pretrain=str(model(tmp_path / "small")))
    assert levels(check_devices(args, node()))["memory of each card"] == UNKNOWN
    assert levels(check_host(args, host(memory_gb=16), 1, 1))["host memory"] == OK


def remedy_of(check: str, findings: list) -> str:
    return next(finding.remedy for finding in findings if finding.check == check)


@pytest.mark.parametrize(
    "changes", [{}, {"micro_batch_max_tokens": None}, {"loss_normalizer": "token_mean"}, {"offload": False}]
)
def test_every_remedy_for_a_trainer_card_makes_its_estimate_smaller(changes: dict) -> None:
    args = arguments(**changes)
    before, remedy = sum(trainer_memory(args).values()), remedy_of(TRAINER, check_devices(args, node(memory_gb=16.0)))
    for flag, value in (("micro_batch_max_tokens", 5120), ("micro_train_batch_size", 1), ("generate_max_len", 2048),
                        ("offload", True)):  # fmt: skip
        after = sum(trainer_memory(arguments(**{**changes, flag: value})).values())
        assert after < before or f"--{flag}" not in remedy, flag
    assert "lower --generate_max_len" in remedy


def test_parameters_are_sent_to_the_cards_only_where_they_fit() -> None:
    for card, fits in ((25.2, False), (80.0, True)):
        machine = node(memory_gb=card)
        machine.memory_gb = 40
        assert ("--no_offload" in remedy_of("host memory", check_host(arguments(), machine, 200, 200))) == fits


def test_the_topology_matrix_is_read() -> None:
    text = "\tGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity\nGPU0\t X \tNV4\tSYS\tSYS\t0-31\nGPU1\tNV4\t X \tSYS\tSYS\t0-31\n" \
           "GPU2\tSYS\tSYS\t X \tPIX\t32-63\nGPU3\tSYS\tSYS\tPIX\t X \t32-63\n\nLegend:\n  X = Self\n"  # fmt: skip
    assert neighbour_links(text) == ["NV4", "PIX"]
    # As printed by driver 580 for a single card: its head line also begins with GPU0.
    alone = "\t\x1b[4mGPU0\tCPU Affinity\tNUMA Affinity\x1b[0m\nGPU0\t X \t0-15\t0\n\nLegend:\n\n  X    = Self\n"
    assert neighbour_links(alone) == []


def test_cards_are_read_and_the_hidden_ones_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "NVIDIA A30, 24576, 3, 8.0, 575.57.08\nNVIDIA A30, 24576, 20480, 8.0, 575.57.08\n"
    cards = read_gpus(text + "Unable to determine the device handle for GPU2: 0000:41:00.0: Unknown Error\n")
    assert [(card["name"], round(card["memory_gb"], 1), round(card["used_gb"], 1)) for card in cards] == [
        ("NVIDIA A30", 25.8, 0.0), ("NVIDIA A30", 25.8, 21.5)]  # fmt: skip
    assert (cards[0]["capability"], cards[0]["driver"]) == (8.0, 575)
    for value, seen in (("1", cards[1:]), ("", []), ("GPU-8f2a", cards), ("1,0", cards[::-1])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible(cards) == seen


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_figure_that_nvidia_smi_does_not_give_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "NVIDIA A30, 24576, [N/A], 8.0, 575.57.08\nNVIDIA A30, [N/A], 30000, [N/A], [N/A]"
    fake_nvidia_smi(tmp_path, monkeypatch, f"[ $1 = topo ] || echo '{lines}'")
    machine = probe(tmp_path)
    assert [(card["used_gb"] is None, card["memory_gb"] is None) for card in machine.gpus] == [(True, False), (False, True)]
    found = {finding.check: finding for finding in check_devices(arguments(), machine)}
    assert found["cards"].level == UNKNOWN
    assert "capability, driver, memory_gb, used_gb" in found["cards"].seen
    assert "GPU 1: 31.5 GB" in found["cards in use"].seen
    assert "of 25.8 GB" in found[TRAINER].seen
    bare = Machine([{**A30, "capability": None, "memory_gb": None, "driver": None, "used_gb": None}] * 8)
    assert levels(check_devices(arguments(), bare)) == {
        "GPUs": OK, "cards": UNKNOWN, "cards in use": OK, "links between neighbouring GPUs": OK, TRAINER: UNKNOWN,
        ENGINE: UNKNOWN,
    }  # fmt: skip
    assert levels(check_kernels(arguments(), bare)) == {"engine kernels": UNKNOWN}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exec sleep 60", "no answer within 0.5 s"),
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9",
            "NVIDIA-SMI has failed",
        ),
        ("exit 3", "nothing"),
    ],
)
def test_an_nvidia_smi_that_names_no_card_is_quoted(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "SMI_SECONDS", 0.5)
    fake_nvidia_smi(tmp_path, monkeypatch, script)
    found = check_devices(arguments(), probe(tmp_path))
    assert (found[0].level, f"nvidia-smi says: {words}" in found[0].seen) == (STOP, True)
    assert "driver" in found[0].remedy


@pytest.mark.parametrize(
    ("limits", "usable"),
    [
        ({}, 64),
        ({"memory.max": "max"}, 64),
        ({"memory.max": str(16 * 1024**3)}, 16),
        ({"memory/memory.limit_in_bytes": str(8 * 1024**3)}, 8),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 64),  # as version 1 writes that there is none
    ],
)
def test_a_containers_limit_counts_as_its_memory(limits: dict[str, str], usable: int, tmp_path: Path) -> None:
    written = {"proc/meminfo": f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {40 << 20} kB\nHugePages_Total: 0\n"}
    for name, text in (written | {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    gib = 1024**3 / 1e9
    assert host_memory_of(tmp_path) == pytest.approx((usable * gib, min(usable, 40) * gib))


def test_this_machine_can_be_probed() -> None:
    machine = probe(ROOT / "runs" / "not" / "there yet")
    assert machine.memory_gb > 1
    assert 0 < machine.available_gb <= machine.memory_gb
    assert machine.disk_gb > 0
    assert 0 < machine.temporary_used < 1


def gpt_oss_experts(with_lora: bool) -> Any:
    """What vLLM asks its kernels for: gpt-oss-20b's experts on one card."""
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType

    return FusedMoEConfig(
        num_experts=32, experts_per_token=4, hidden_dim=2880, intermediate_size_per_partition=2880, num_local_experts=32,
        num_logical_experts=32, activation=MoEActivation.SWIGLUOAI, device="cuda", routing_method=RoutingMethodType.Renormalize,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(), in_dtype=torch.bfloat16, has_bias=True,
        is_lora_enabled=with_lora,
    )  # fmt: skip


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_kernels_are_those_that_vllm_chooses(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own selection, told that it is on such a card with every kernel library there."""
    monkeypatch.setitem(sys.modules, "vllm._C_stable_libtorch", mock.Mock())  # only the GPU build has it
    from vllm.model_executor.layers.fused_moe import flashinfer_cutlass_moe, fused_marlin_moe
    from vllm.model_executor.layers.fused_moe.experts import gpt_oss_triton_kernels_moe, trtllm_mxfp4_moe
    from vllm.model_executor.layers.fused_moe.oracle import mxfp4
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.attention.backends import flash_attn
    from vllm.v1.attention.selector import AttentionSelectorConfig

    major, minor = capability
    asked = AttentionSelectorConfig(head_size=64, dtype=torch.bfloat16, kv_cache_dtype="auto", block_size=None,
                                    has_sink=True, attn_type="decoder")  # fmt: skip
    card = mock.Mock()
    card.is_cuda.return_value = card.is_cuda_alike.return_value = True
    card.is_rocm.return_value = card.is_xpu.return_value = False
    card.get_device_capability.return_value = DeviceCapability(major, minor)
    card.has_device_capability.side_effect = lambda least: capability >= least
    card.is_device_capability.side_effect = lambda value: value in (capability, 10 * major + minor)
    card.is_device_capability_family.side_effect = lambda value: value // 10 == major
    kernels = (mxfp4, flashinfer_cutlass_moe, fused_marlin_moe, gpt_oss_triton_kernels_moe, trtllm_mxfp4_moe)
    with contextlib.ExitStack() as told:
        for module in kernels:
            told.enter_context(mock.patch.object(module, "current_platform", card))
            for library in ("has_triton_kernels", "has_flashinfer", "has_flashinfer_cutlass_fused_moe"):
                if hasattr(module, library):
                    told.enter_context(mock.patch.object(module, library, return_value=True))
        told.enter_context(mock.patch.multiple(flash_attn, is_flash_attn_varlen_func_available=lambda: True,
                                               flash_attn_supports_sinks=lambda: major == 9, create=True))  # fmt: skip
        chosen = [mxfp4.select_gpt_oss_mxfp4_moe_backend(gpt_oss_experts(with_lora))[0].name for with_lora in (True, False)]
        valid, _ = CudaPlatformBase.get_valid_backends(DeviceCapability(major, minor), asked)
    number = major + minor / 10
    assert chosen == [mxfp4_backend(number, True), mxfp4_backend(number, False)]
    if major != 10:  # FlashInfer cannot be imported without a card
        assert valid[0][0].name == attention_backend(number)


def test_kernels_are_named_and_stale_variables_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {f.check: f for f in check_kernels(arguments(), node())}
    assert "TRITON_ATTN" in found["attention backend"].seen
    assert found["MXFP4 kernel"].seen == "MARLIN on 8.0"
    finding = check_kernels(arguments(vllm_pretrain=str(model(tmp_path / "bf16"))), node())[1]
    assert (finding.level, "released checkpoint" in finding.remedy) == (WARNING, True)
    names = ("VLLM_ATTENTION_BACKEND", "VLLM_MXFP4_USE_MARLIN", "VLLM_USE_FLASHINFER_MOE_MXFP4_BF16")
    for name in names:
        monkeypatch.setenv(name, "1")
    found = levels(check_kernels(arguments(), node()))
    assert [found[name] for name in names] == [WARNING] * 3
    assert levels(check_kernels(arguments(num_devices=2), node())) == {"engine kernels": OK}
