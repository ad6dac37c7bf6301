"""The payload, its manifest, and the shard that each tensor-parallel rank must hold."""

import dataclasses

import pytest
import torch

from gptoss_rl.sync.lora_payload import (
    HeadLayout,
    Manifest,
    delta_norm,
    expected_digests,
    pack,
    shard,
    split_peft_name,
    tensor_digest,
    unpack,
)

Q, OUT = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"
K = "model.layers.0.self_attn.k_proj"
LAYOUT = HeadLayout(head_dim=4, num_heads=4, num_kv_heads=2)


def adapter(rank: int = 2) -> dict[tuple[str, str], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    return {
        (Q, "A"): random(rank, 8),
        (Q, "B"): random(16, rank),
        (K, "A"): random(rank, 8),
        (K, "B"): random(8, rank),
        (OUT, "A"): random(rank, 16),
        (OUT, "B"): random(8, rank),
    }


@pytest.mark.parametrize("middle", [".default", ""])
def test_peft_names_become_module_paths(middle: str) -> None:
    name = f"base_model.model.{Q}.lora_A{middle}.weight"
    assert split_peft_name(name) == (Q, "A")


@pytest.mark.parametrize("name", ["base_model.model.lm_head.weight", f"base_model.model.{Q}.lora_A.other.weight", ""])
def test_a_name_that_is_no_lora_matrix_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a LoRA weight"):
        split_peft_name(name)


def test_what_is_packed_is_unpacked_bit_for_bit() -> None:
    matrices = adapter()
    manifest, buffer = pack(matrices, version=3, rank=2, scaling=2.0)
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    unpacked = unpack(again, bytearray(buffer.numpy().tobytes()))
    assert set(unpacked) == set(matrices)
    assert all(torch.equal(unpacked[key], matrices[key]) for key in matrices)


def test_unpacked_tensors_are_writable_and_private() -> None:
    # vLLM multiplies the scaling into B in place: a shared buffer would be scaled twice.
    manifest, buffer = pack(adapter(), version=1, rank=2, scaling=2.0)
    data = buffer.numpy().tobytes()
    first = unpack(manifest, bytearray(data))
    first[Q, "B"].mul_(2)
    second = unpack(manifest, bytearray(data))
    assert not torch.equal(first[Q, "B"], second[Q, "B"])


def test_a_payload_of_another_length_is_refused() -> None:
    manifest, buffer = pack(adapter(), version=1, rank=2, scaling=2.0)
    with pytest.raises(ValueError, match="bytes"):
        unpack(manifest, bytearray(buffer.numpy().tobytes()[:-2]))


def test_mixed_dtypes_are_refused() -> None:
    matrices = adapter()
    matrices[Q, "A"] = matrices[Q, "A"].float()
    with pytest.raises(ValueError, match="one dtype"):
        pack(matrices, version=1, rank=2, scaling=1.0)


def test_one_flipped_bit_changes_the_digest() -> None:
    tensor = torch.zeros(4, dtype=torch.bfloat16)
    before = tensor_digest(tensor)
    tensor.view(torch.int16)[2] ^= 1
    assert tensor_digest(tensor) != before


@pytest.mark.parametrize("tp_size", [1, 2])
def test_shards_of_all_ranks_make_up_the_whole_adapter(tp_size: int) -> None:
    matrices = adapter()
    for module, axis in ((Q, "B"), (K, "B"), (OUT, "A")):
        parts = [shard(matrices, module, LAYOUT, rank, tp_size) for rank in range(tp_size)]
        index, dim = (1, 0) if axis == "B" else (0, 1)
        assert torch.equal(torch.cat([part[index] for part in parts], dim=dim), matrices[module, axis])
        other = 1 - index
        assert all(torch.equal(part[other], matrices[module, "AB"[other]]) for part in parts)


def test_a_key_value_head_is_shared_when_ranks_outnumber_heads() -> None:
    # 4 ranks, 2 key-value heads of 4 rows: ranks 0 and 1 hold head 0, ranks 2 and 3 hold head 1.
    starts = [LAYOUT.shard_B_rows("k_proj", rank, 4).start for rank in range(4)]
    assert starts == [0, 0, 4, 4]


def test_digests_depend_on_scaling_rank_and_values() -> None:
    matrices, modules = adapter(), [Q, K, OUT]
    base = expected_digests(matrices, modules, LAYOUT, 2.0, 0, 2)
    assert expected_digests(matrices, modules, LAYOUT, 1.0, 0, 2) != base
    assert expected_digests(matrices, modules, LAYOUT, 2.0, 1, 2) != base
    matrices[OUT, "B"][0, 0] += 1
    changed = expected_digests(matrices, modules, LAYOUT, 2.0, 0, 2)
    assert [module for module in modules if changed[module] != base[module]] == [OUT]


def test_the_norm_through_gram_matrices_is_the_norm_of_the_product() -> None:
    a, b = torch.randn(3, 50), torch.randn(40, 3)
    assert delta_norm(a, b, 0.5) == pytest.approx((0.5 * b @ a).norm().item(), rel=1e-5)


def test_a_manifest_cannot_be_changed_by_accident() -> None:
    manifest, _ = pack(adapter(), version=1, rank=2, scaling=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.version = 2
