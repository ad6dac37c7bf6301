"""Every command of the README is typed as it stands into a copy of the repository, or named below with what runs it."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from made_run import make_run
from workplace import ROOT, Workplace, write_sources

from gptoss_rl.flags import ENTRY_POINT, parse
from gptoss_rl.metrics import with_table
from gptoss_rl.models.mxfp4 import quantize_checkpoint
from gptoss_rl.models.tiny_tokenizer import build_tokenizer
from gptoss_rl.run.launch_gates import flag_problems

README = (ROOT / "README.md").read_text()
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
TYPED: set[str] = set()  # by the tests below
SHORT = "--max_tokens 24 --reasoning_effort low"


def block(heading: str) -> list[str]:
    """Lines of the bash block under a heading, without comments."""
    section = README[README.index(f"## {heading}\n") :]
    return stripped(re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1])


def stripped(text: str) -> list[str]:
    lines = [re.split(r"\s+#\s", line)[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def commands() -> set[str]:
    """Every line of a bash block, and every command in running text."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    inline = re.findall(r"`((?:python|bash) [^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    return {line for text in blocks for line in stripped(text)} | set(inline)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("readme") / "gptoss-rl")


def typed(line: str) -> str:
    TYPED.add(line)
    return line


def test_what_runs_elsewhere_is_run_there() -> None:
    for line, (where, word) in ELSEWHERE.items():
        assert line in commands(), f"{line} is not in the README any more"
        assert word in (ROOT / where).read_text(), f"{where} does not show that it runs: {line}"


def make_data(work: Workplace) -> None:
    """Type the data block, once."""
    if (work.folder / "data" / "probe_set_200.jsonl").is_file():
        return
    write_sources(work.folder / "data" / "sources")
    build_tokenizer(131_072).save_pretrained(work.folder / "models" / "gpt-oss-20b")  # all that the filter reads of a model
    fetch, *rest = map(typed, block("Data"))
    refused = work.type(fetch, HF_HUB_OFFLINE="1", HF_HOME=str(work.folder / "cache"))
    assert (refused.returncode, "cannot be fetched" in refused.stderr) == (1, True)  # no test asks the hub
    for line in rest:
        work.must(line, "--rows 3000" if "bench_filter" in line else "")
    shutil.rmtree(work.folder / "models")


def test_the_readmes_data_commands_in_their_order(work: Workplace) -> None:
    make_data(work)
    assert typed("python -m gptoss_rl.data verify") in block("Data")
    sizes = {path.name: path.read_text().count("\n") for path in (work.folder / "data").glob("*.jsonl")}
    assert sizes["probe_set_1000_ood.jsonl"] == 1_000
    assert sizes["sft_rl_pool_3200.jsonl"] == 3_200
    assert sizes["probe_set_200.jsonl"] == 200


def test_the_readmes_commands_for_eight_cards(work: Workplace, gpt_oss_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = work.folder / "models"
    models.mkdir()
    lines = list(map(typed, block("On eight A30")))
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


@pytest.mark.e2e
def test_the_readmes_evaluation_commands(work: Workplace, tiny: Path, finished_run: Path) -> None:
    make_data(work)
    (work.folder / "models").mkdir()
    for name in ("gpt-oss-20b", "gpt-oss-20b-bf16"):  # the CPU's engine has no MXFP4
        (work.folder / "models" / name).symlink_to(tiny)
    (work.folder / "models" / "tiny-gptoss").symlink_to(tiny)  # as the run's flags name it
    (work.folder / "runs").mkdir()
    (work.folder / "runs" / "NAME").symlink_to(finished_run)
    work.must(typed("python merge_lora.py --base models/gpt-oss-20b-bf16 --adapter runs/NAME/adapter --output merged"))
    merged, adapter, regression, baseline, apex = map(typed, block("Evaluation"))
    assert "tier stability" in work.must(merged, f"--limit 120 {SHORT}")
    assert "rl (B) against gpt-oss-20b (A): " in work.must(adapter, f"--limit 120 {SHORT}")
    # In training and post hoc agree problem by problem, as an adapter and, up to what rounding takes, merged.
    said = work.must(regression)
    assert "40 problems: 40 responses equal to the token; verdicts differ on 0" in said
    assert "in-training and post-hoc evaluation agree" in said
    assert "agree" in work.must(regression, "--merged merged --tolerance 1")
    assert "recommended for training" in work.must(baseline, f"--limit 6 --n_samples 2 {SHORT} --auto-symlink")
    assert (work.folder / "data" / "train_prompts.jsonl").is_symlink()
    assert "2 problems x 16 samples" in work.must(apex, SHORT)
    for name, source in (("A", "gpt-oss-20b"), ("B", "rl")):
        for suffix in (".jsonl", ".identity.json"):
            made = work.folder / "evals" / "probe_set_1000_ood" / f"{source}{suffix}"
            shutil.copyfile(made, work.folder / f"{name}{suffix}")
    assert "tier: stability" in work.must(typed("python -m gptoss_rl.stats compare A.jsonl B.jsonl"))


@pytest.mark.e2e
def test_no_command_of_the_readme_is_left_out() -> None:
    only_seed = {f"{TINY} --seed 7"}  # the launcher's own --seed, with another value
    assert commands() - set(ELSEWHERE) - TYPED - only_seed == set()


def test_the_metric_table_is_current() -> None:
    # Remedy: python -m gptoss_rl.metrics
    assert with_table(README) == README


def test_every_message_of_ours_in_the_readme_is_one_that_is_printed() -> None:
    section = README[README.index("## When something stops") : README.index("## Where things are")]
    # Those of torch, vLLM and Ray have their name behind them.
    messages = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
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
    named = set(re.findall(r"`([\w/]+\.(?:py|sh|md))`", README)) | set(re.findall(r"\]\(([\w/.]+)\)", README))
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "gptoss_rl" / name).exists()]
    assert missing == []
