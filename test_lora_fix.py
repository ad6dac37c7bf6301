"""The accumulation bug, and that it cannot come back: syncing is replacing, not adding.

The original sync added each adapter to what the last one had left, so the sampler drifted away from the trainer
with every step. Here one adapter is synced ten times, then another, then the first again, to a real vLLM engine; a
fresh engine is given the first adapter once. Both must score the same tokens with bit-identical logprobs, in both
sync modes. Then the bug is put back, and the sync must name it.

    python test_lora_fix.py                  # prints a table; needs the CPU environment, takes two to three minutes
    python -m pytest test_lora_fix.py
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "tests"))

MODES = ("adapter", "merge")
RANK = 8
REPEATS = 10
FIRST, SECOND = 11, 12  # seeds, i.e. two different adapters
SEQUENCES = [[5 + (11 * i * j) % 300 for i in range(48)] for j in (1, 2, 3)]

pytestmark = pytest.mark.engine


def sequence_of_syncs(mode: str, folder: Path) -> dict[str, Any]:
    """Run the whole story in one mode.

    Returns:
        scores of the much-synced and of the fresh engine, the base model's, the syncs' records, and the error
        that the buggy worker provoked (None if nobody noticed).
    """
    import ray

    from gptoss_rl.errors import SyncError
    from gptoss_rl.models.random_model import random_adapter, set_random_B
    from gptoss_rl.sync.local_engine import engine_arguments, start_engine
    from gptoss_rl.sync.lora_sync import LoraSync

    args = engine_arguments(lora_rank=RANK, vllm_lora_sync=mode, enforce_eager=True, vllm_max_num_seqs=16)
    used, fresh = (start_engine(folder, args, max_model_len=128, worker="faulty_worker.FaultyWorker") for _ in range(2))
    model = random_adapter(folder, rank=RANK, seed=FIRST)

    def score(engine) -> list[list[float]]:
        return ray.get(engine.score.remote(SEQUENCES))

    result: dict[str, Any] = {"base": score(used), "records": []}
    sync = LoraSync(model, [used], mode=mode, timeout=240)
    for seed in [FIRST] * REPEATS + [SECOND, FIRST]:
        set_random_B(model, seed=seed)
        result["records"].append(sync.sync())
        if seed == SECOND:
            result["other"] = score(used)
    result["used"] = score(used)
    LoraSync(model, [fresh], mode=mode, timeout=240).sync()
    result["fresh"] = score(fresh)

    ray.get(used.call_workers.remote("policy_set_fault", "accumulate"))
    try:
        sync.sync()
        result["error"] = None
    except SyncError as error:
        result["error"] = str(error)
    result["buggy"] = score(used)
    for engine in (used, fresh):
        ray.kill(engine)
    return result


@pytest.fixture(scope="module", params=MODES)
def result(request: pytest.FixtureRequest, gpt_oss_folder: Path) -> dict[str, Any]:
    import ray

    from gptoss_rl.sync.local_engine import start_ray

    start_ray(devices=2, extra_path=Path(__file__).resolve().parent / "tests")
    yield sequence_of_syncs(request.param, gpt_oss_folder)
    ray.shutdown()


def test_ten_syncs_and_a_detour_leave_what_one_sync_leaves(result: dict[str, Any]) -> None:
    assert result["used"] == result["fresh"]


def test_the_adapters_are_told_apart(result: dict[str, Any]) -> None:
    # Without this the test above would also pass if no adapter were served at all.
    assert result["used"] != result["other"]
    assert result["used"] != result["base"]


def test_the_accumulating_variant_is_caught(result: dict[str, Any]) -> None:
    assert result["error"] is not None
    assert "engine 0, worker of TP rank 0: module model.layers.0" in result["error"]
    assert result["buggy"] != result["fresh"]


def test_merge_mode_says_how_much_rounding_lost(result: dict[str, Any]) -> None:
    shares = {record["dead_zone_share"] for record in result["records"]}
    if result["records"][0]["mode"] == "adapter":
        assert shares == {None}
    else:
        assert all(0 < share < 1 for share in shares)


def main() -> None:
    from gptoss_rl.models.random_model import save_random_gpt_oss
    from gptoss_rl.sync.local_engine import start_ray

    start_ray(devices=2, extra_path=Path(__file__).resolve().parent / "tests")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        save_random_gpt_oss(Path(folder))
        for mode in MODES:
            result = sequence_of_syncs(mode, Path(folder))
            same, caught = result["used"] == result["fresh"], result["error"] is not None
            failed |= not (same and caught)
            share = result["records"][0]["dead_zone_share"]
            print(f"{mode:8s} ten syncs, another, back: {'same logprobs as a fresh engine' if same else 'DIFFERENT'}")
            print(f"{'':8s} adding instead of replacing: {'caught: ' + result['error'] if caught else 'NOT CAUGHT'}")
            if share is not None:
                print(f"{'':8s} share of the update that bf16 rounding swallowed: {share:.1%}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
