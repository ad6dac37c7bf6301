"""What `python -m gptoss_rl.data verify` must not let pass: files and manifests that are gone, or say what nobody reads."""

import json
from pathlib import Path

import pytest

from gptoss_rl.data.files import manifest_path, prompt_row, read_lines, write_all
from gptoss_rl.data.numina_fixture import good_row
from gptoss_rl.data.readme import readme
from gptoss_rl.data.verify import verify_folder
from gptoss_rl.errors import GateError
from gptoss_rl.run.launch_gates import check_manifests


def rows(*numbers: int) -> list[dict]:
    return [prompt_row(good_row(n)["problem"], "7", "made up") for n in numbers]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pool with its active subset, and an evaluation set from another command."""
    write_all(
        {tmp_path / "pool.jsonl": rows(0, 1, 2, 3), tmp_path / "active.jsonl": rows(1, 3)},
        {},
        {"pool.jsonl": {"role": "pool"}, "active.jsonl": {"role": "train"}},
    )
    write_all({tmp_path / "held_out.jsonl": rows(50, 61)}, {}, {"held_out.jsonl": {"role": "evaluation"}})
    return tmp_path


def faults(folder: Path) -> list[str]:
    return verify_folder(folder, lambda line: None)


def change_manifest(path: Path, **fields) -> None:
    manifest = json.loads(manifest_path(path).read_text()) | fields
    manifest_path(path).write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))


def test_a_whole_folder_has_no_fault(folder: Path) -> None:
    said = []
    assert verify_folder(folder, said.append) == []
    assert "active.jsonl is a part of pool.jsonl" in said
    assert "pool.jsonl x held_out.jsonl: disjoint" in said


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "held_out.meta.json").unlink(), "held_out.jsonl has no manifest"),
        (lambda f: (f / "held_out.jsonl").unlink(), "held_out.jsonl is missing, its manifest is there"),
        (lambda f: [(f / f"active{s}").unlink() for s in (".jsonl", ".meta.json")],
         "active.jsonl is missing, it was made together with pool.jsonl"),
        (lambda f: [(f / f"pool{s}").unlink() for s in (".jsonl", ".meta.json")],
         "pool.jsonl is missing, it was made together with active.jsonl"),
        (lambda f: (f / "own.jsonl").write_text(json.dumps(rows(70)[0]) + "\n"), "own.jsonl has no manifest"),
        (lambda f: (f / "own.jsonl").symlink_to(f / "nothing.jsonl"), "nothing.jsonl has no manifest"),
        (lambda f: change_manifest(f / "held_out.jsonl", role="heldout"), "role 'heldout' is none of pool, train"),
        (lambda f: change_manifest(f / "held_out.jsonl", role=["evaluation"]), "role is ['evaluation']"),
        (lambda f: change_manifest(f / "held_out.jsonl", role=None), "role is None"),
        (lambda f: change_manifest(f / "held_out.jsonl", file=None), "file is None"),
        (lambda f: change_manifest(f / "held_out.jsonl", duplicates=3), "duplicates is 3"),
        (lambda f: write_all({f / "active.jsonl": rows(1, 80)}, {}, {"active.jsonl": {"role": "train"}}),
         "active.jsonl: 1 rows are not in pool.jsonl"),
        (lambda f: write_all({f / "active.jsonl": [rows(1)[0] | {"label": "8"}]}, {}, {"active.jsonl": {"role": "train"}}),
         "active.jsonl: 1 rows are not in pool.jsonl"),
    ],
)  # fmt: skip
def test_what_is_missing_or_not_understood_is_a_fault(folder: Path, spoil, message: str) -> None:
    spoil(folder)
    found = faults(folder)
    assert any(message in fault for fault in found), found
    readme(folder)  # it says so, and does not break


def test_second_names_and_the_tiny_sums_need_no_manifest(folder: Path) -> None:
    (folder / "train_prompts.jsonl").symlink_to("active.jsonl")
    (folder / "tiny_train.jsonl").write_text('{"input": "1 + 1", "label": "2"}\n')
    assert faults(folder) == []


def test_no_file_of_a_folder_is_trained_on_with_a_manifest_of_an_unknown_role(folder: Path) -> None:
    own = folder / "own.jsonl"  # without a manifest: what is trained on is the user's choice
    own.write_text(json.dumps(rows(70)[0]) + "\n")
    check_manifests([own, folder / "active.jsonl"])
    change_manifest(folder / "active.jsonl", role="heldout")
    with pytest.raises(GateError, match="role 'heldout' is none of") as stopped:
        check_manifests([folder / "active.jsonl"])
    assert "delete" not in str(stopped.value)
    assert read_lines(folder / "active.jsonl")
