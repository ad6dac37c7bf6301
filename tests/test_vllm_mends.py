"""What is mended in vLLM is still broken there, and the mend does what it says. Where one of these fails, drop the mend."""

from types import SimpleNamespace

import pytest
import torch

RANKS, TOKENS, WIDTH, LORA_RANK = 2, 3, 8, 4
SLICES = (6, 2, 2)  # rows of q, k and v on one of two ranks


class Punica:
    """LoRA's two products in the signature that vLLM's layers call, over all slices."""

    def add_shrink(self, buffers, x, lora_a, scale) -> None:
        for buffer, a in zip(buffers, lora_a, strict=True):
            buffer += scale * x @ a[0, 0].T

    def add_expand(self, y, buffers, lora_b, output_slices, offset_start=0, add_input=True) -> None:
        for buffer, b, rows in zip(buffers, lora_b, output_slices, strict=True):
            y[:, offset_start : offset_start + rows] += buffer @ b[0, 0].T
            offset_start += rows

    def add_lora_linear(self, y, x, lora_a, lora_b, scale, output_slices) -> None:
        buffers = [torch.zeros(len(x), LORA_RANK) for _ in output_slices]
        self.add_shrink(buffers, x, lora_a, scale)
        self.add_expand(y, buffers, lora_b, output_slices)


@pytest.fixture
def projection(monkeypatch: pytest.MonkeyPatch):
    """One rank's fused projection with an adapter in its slot, as vLLM lays both out; the other rank holds the same A."""
    from vllm.lora.layers import column_parallel_linear

    from gptoss_rl.sync import vllm_worker  # noqa: F401  its import mends

    monkeypatch.setattr(column_parallel_linear, "tensor_model_parallel_all_gather", lambda x: torch.cat([x] * RANKS, dim=-1))
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(sum(SLICES), WIDTH, generator=generator)
    layer = column_parallel_linear.MergedQKVParallelLinearWithLoRA.__new__(
        column_parallel_linear.MergedQKVParallelLinearWithLoRA
    )
    torch.nn.Module.__init__(layer)
    base = SimpleNamespace(quant_method=SimpleNamespace(apply=lambda self, x, bias: x @ weight.T))
    attributes = {
        "base_layer": base, "tp_size": RANKS, "n_slices": 3, "output_slices": SLICES, "punica_wrapper": Punica(),
        "_enable_aux_cuda_stream": False,
        "lora_a_stacked": tuple(torch.randn(1, 1, LORA_RANK, WIDTH, generator=generator) for _ in SLICES),
        "lora_b_stacked": tuple(torch.randn(1, 1, rows, LORA_RANK, generator=generator) for rows in SLICES),
    }  # fmt: skip
    for name, value in attributes.items():
        object.__setattr__(layer, name, value)
    x = torch.randn(TOKENS, WIDTH, generator=generator)
    deltas = [b[0, 0] @ a[0, 0] for a, b in zip(layer.lora_a_stacked, layer.lora_b_stacked, strict=True)]
    return layer, x, x @ (weight + torch.cat(deltas)).T


def test_the_fused_projection_adds_its_ranks_adapter(projection) -> None:
    layer, x, wanted = projection
    torch.testing.assert_close(layer.apply(x), wanted)


def test_vllm_still_gathers_what_every_rank_holds_whole(projection) -> None:
    """A x comes back twice as wide as B's rank: here the product fails; a kernel that trusts the rank reads on beyond B."""
    from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA

    layer, x, _ = projection
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MergedColumnParallelLinearWithLoRA.apply(layer, x)


def bindings(mask: str, monkeypatch: pytest.MonkeyPatch):
    """An OpenMP manager of two ranks, before it has read the variable."""
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", mask)
    manager = OMPProcessManager.__new__(OMPProcessManager)
    manager.local_world_size, manager.local_dp_rank = RANKS, None
    return manager


def test_vllm_starts_without_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # as every process of vLLM does: the entry point of the installed package is found
    manager = bindings("nobind", monkeypatch)
    manager._parse_omp_threads_bind_env()
    assert (manager.skip_setup, manager.auto_setup, manager.cpu_lists) == (True, False, [])
    manager = bindings("0|1", monkeypatch)
    manager._parse_omp_threads_bind_env()
    assert (manager.skip_setup, manager.cpu_lists) == (False, [[0], [1]])


def test_vllm_alone_still_fails_without_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_rl.sync.vllm_plugin import register

    register()
    manager = bindings("nobind", monkeypatch)
    with pytest.raises(IndexError):
        manager._parse_omp_threads_bind_env.__wrapped__(manager)
