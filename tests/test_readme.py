"""Every command of README.md and docs/ is typed as it stands in a copy of the repository, or named below with what runs it."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import readme
from made_run import make_run
from readme import DOCUMENTS, README, TEXT, block, typed
from workplace import ROOT, Workplace

from gptoss_rl.documents import TABLES, current
from gptoss_rl.errors import GATES
from gptoss_rl.flags import ENTRY_POINT, parse
from gptoss_rl.models.mxfp4 import quantize_checkpoint
from gptoss_rl.run.launch_gates import flag_problems

# What other tests run for real, in a short form; the last word is a piece of their source that shows it.
RUNS = "tests/test_train_cpu.py"
TINY = "bash train_grpo_tiny_cpu.sh"
ELSEWHERE = {
    TINY: ("tests/tiny_run.py", "train_grpo_tiny_cpu.sh"),
    f"{TINY} --vllm_num_engines 2 --num_devices 3": (RUNS, '"--vllm_num_engines", "2"'),
    f"{TINY} --vllm_tensor_parallel_size 2 --num_devices 3": (RUNS, '"--vllm_tensor_parallel_size", "2"'),
    f"{TINY} --vllm_lora_sync merge": (RUNS, '"--vllm_lora_sync", "merge"'),
    "bash run_tests.sh": (".ci/run", "run_tests.sh"),
    "bash setup_env.sh cpu": ("run_tests.sh", "setup_env.sh cpu"),
    "python test_lora_fix.py": ("pyproject.toml", "test_lora_fix.py"),
    "bash apply_patches.sh": ("setup_env.sh", "apply_patches.sh"),
    "bash apply_patches.sh --restore": ("tests/test_patch_installs.py", 'script("--restore")'),
}
# Needs a hub; its arguments are parsed below.
NOT_RUN = "hf download"


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("readme") / "gptoss-rl")


def typed_by_tests() -> set[str]:
    """The commands that tests type, read off their source: a test that has not run yet counts, and one alone can be run."""
    source = "".join(
        (ROOT / "tests" / name).read_text() for name in ("readme.py", "test_readme.py", "test_readme_evaluation.py")
    )
    blocks = {line for heading in re.findall(r'block\("([^"]+)"\)', source) for line in readme.block(heading)}
    return blocks | set(re.findall(r'\btyped\("([^"]+)"\)', source))


def test_what_runs_elsewhere_is_run_there() -> None:
    for line, (where, word) in ELSEWHERE.items():
        assert line in readme.commands(), f"{line} is not in the README any more"
        assert word in (ROOT / where).read_text(), f"{where} does not show that it runs: {line}"


def test_the_readmes_data_commands_in_their_order(readme_data: Path) -> None:
    assert "python -m gptoss_rl.data verify" in block("Data")
    sizes = {path.name: path.read_text().count("\n") for path in readme_data.glob("*.jsonl")}
    assert sizes["probe_set_1000_ood.jsonl"] == 1_000
    assert sizes["sft_rl_pool_3200.jsonl"] == 3_200
    assert sizes["probe_set_200.jsonl"] == 200


def test_the_readmes_commands_for_eight_cards(work: Workplace, readme_data: Path, gpt_oss_folder: Path) -> None:
    shutil.copytree(readme_data, work.folder / "data", dirs_exist_ok=True)
    models = work.folder / "models"
    models.mkdir()
    lines = block("On eight A30")
    for line in lines:
        words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        if "setup_env.sh" in line:
            # Here the environment is the CPU's: asking for the other must be refused, not mixed in.
            assert (ROOT / ".venv" / ".gptoss-rl-kind").read_text().startswith("cpu ")
            refused = work.type(f"cd {ROOT} && {line}")
            assert (refused.returncode != 0, "rm -rf .venv" in refused.stderr) == (True, True)
        elif NOT_RUN in line:
            # Offline it fails, but only after every argument was understood.
            refused = work.type(line, HF_HUB_OFFLINE="1", HF_HOME=str(work.folder / "cache"))
            assert (refused.returncode != 0, "offline" in refused.stderr.lower()) == (True, True), refused.printed
            quantize_checkpoint(gpt_oss_folder, models / "gpt-oss-20b")  # in place of what it brings
        elif words[1] == "preflight.py":
            # No test machine has eight cards, so it may find something to stop; it must look and say what.
            assert "learning rate" in work.type(line).stdout
        elif words[1].startswith("train_grpo"):
            printed = shlex.split(work.must(line, DRY_RUN="1"))
            assert flag_problems(parse(printed[printed.index(ENTRY_POINT) + 1 :])) == []
        else:
            work.must(line)
    assert (models / "gpt-oss-20b-bf16" / "config.json").is_file()
    done = work.type(typed("python preflight.py --config NAME").replace("NAME", "a31"), "--json")
    assert {"checkpoints", "data"} <= {finding["check"] for finding in json.loads(done.stdout)}
    shutil.rmtree(models)


def test_the_readmes_commands_for_looking(work: Workplace) -> None:
    make_run(work.folder / "runs" / "NAME", 5)
    (monitor,) = block("Watching a run")
    assert "step 5 of 5" in work.must(typed(monitor), "--once")
    work.must(typed("python -m gptoss_rl.report runs/NAME"))
    assert (work.folder / "runs" / "NAME" / "report.html").stat().st_size > 100_000
    shutil.copyfile(work.folder / "runs" / "NAME" / "samples.jsonl", work.folder / "FILE.jsonl")
    assert "stored grades" in work.must(typed("python reward_func_em.py grade FILE.jsonl"))
    installed = next((ROOT / ".venv" / "lib").glob("python3*/site-packages"))
    report = work.type(typed("bash apply_patches.sh --report 0.9.5").replace("0.9.5", str(installed)))
    assert "metrics_trainer.patch" in report.stdout
    work.must(typed("bash apply_patches.sh --write-table"))
    assert (work.folder / "README.md").read_text() == README
    work.must(typed("python benchmarks/bench_actor_tokens.py"), "--rollouts 2")
    assert "1,000 problems" in work.must(typed("python -m gptoss_rl.stats plan --n 1000"))
    shutil.rmtree(work.folder / "runs")


def test_no_command_of_the_readme_is_left_out() -> None:
    only_seed = {f"{TINY} --seed 7"}  # the launcher's own --seed, with another value
    assert readme.commands() - set(ELSEWHERE) - typed_by_tests() - only_seed == set()


@pytest.mark.parametrize("document", TABLES)
def test_generated_tables_are_current(document: str) -> None:
    # Remedy: python -m gptoss_rl.documents
    text = (ROOT / document).read_text()
    assert current(document, text) == text


def test_every_gate_that_is_raised_is_a_registered_one_and_the_reverse() -> None:
    source = "\n".join(path.read_text() for path in [*ROOT.glob("*.py"), *(ROOT / "gptoss_rl").rglob("*.py")])
    raised = set(re.findall(r'(?:GateError\(|super\(\).__init__\()\s*"(\w+)",', source))
    assert raised == set(GATES) - {"stack"}  # that one is `apply_patches.sh --check`, which knows nothing of runs


def test_every_message_of_ours_in_the_readme_is_one_that_is_printed() -> None:
    # Those of torch, vLLM and Ray have their name behind them.
    messages = re.findall(r"^\| `([^`]+)` \|", DOCUMENTS["docs/troubleshooting.md"], re.MULTILINE)
    assert len(messages) > 10
    files = [*ROOT.glob("*.py"), *ROOT.glob("*.sh"), *(ROOT / "gptoss_rl").rglob("*.py"), *(ROOT / "patches").glob("*.patch")]
    source = "\n".join(path.read_text() for path in files)
    for message in messages:
        gate = re.fullmatch(r"\[gate (\w+)\]", message)
        pattern = (
            rf'(?:GateError|__init__)\(\s*\+?\s*"{gate[1]}"' if gate else ".*".join(map(re.escape, message.split(" ... ")))
        )
        assert re.search(pattern, source), f"nothing prints {message}"


def test_files_and_folders_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"`([\w/]+\.(?:py|sh|md))`", TEXT)) | set(re.findall(r"\]\(([\w/.-]+)\)", TEXT))
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "gptoss_rl" / name).exists()]
    assert missing == []
