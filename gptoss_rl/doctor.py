"""What can be known about a run before it is started: hardware, software, files, flags, memory. `preflight.py` prints it."""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_rl.cluster import devices_needed
from gptoss_rl.errors import GateError
from gptoss_rl.launch_gates import check_disjoint, check_labels, check_length, flag_problems, read_prompts
from gptoss_rl.prompts import HARMONY_MARKERS

OK, WARNING, STOP, UNKNOWN = "ok", "warning", "stop", "not checked"
GB = 1e9
# gpt-oss-20b: 20.9 B parameters; a layer's experts are the largest that ZeRO-3 gathers at once.
LAYERS, HEADS, HIDDEN, LAYER_GB, BASE_GB, MXFP4_GB = 24, 64, 2880, 1.7, 41.8, 13.8
EAGER_BYTES = 8.4  # of memory for samples x heads x tokens^2; results/2026-11-23_actor-step
LOGITS_GB = 0.8  # the chunked projection; the same place
RUNTIME_GB = 1.5  # CUDA context and allocator
LEAST_CAPABILITY, LEAST_DRIVER = 8.0, 570  # bf16 and Marlin's MXFP4; CUDA 12.8
LEAST_SHM_GB, LEAST_DISK_GB = 8.0, 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    level: str
    check: str
    seen: str
    remedy: str = ""


@dataclass
class Machine:
    """What was found here; tests make others up."""

    gpus: list[dict[str, Any]] | None = None  # name, memory_gb, capability, driver; None: no nvidia-smi
    memory_gb: float = 0.0
    shm_gb: float = 0.0
    disk_gb: float = 0.0
    links: list[str] = field(default_factory=list)  # between neighbouring GPUs, as nvidia-smi topo names them


def probe(folder: Path) -> Machine:
    """This machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    shm = shutil.disk_usage("/dev/shm").total / GB if Path("/dev/shm").is_dir() else 0.0
    machine = Machine(None, memory, shm, shutil.disk_usage(folder).free / GB)
    if shutil.which("nvidia-smi") is None:
        return machine
    query = "name,memory.total,compute_cap,driver_version"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    text = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout
    machine.gpus = []
    for line in text.splitlines():
        name, mib, capability, driver = (part.strip() for part in line.split(","))
        machine.gpus.append({"name": name, "memory_gb": float(mib) * 1.048576e6 / GB, "capability": float(capability),
                             "driver": int(driver.split(".")[0])})  # fmt: skip
    topology = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=False, timeout=20).stdout
    machine.links = neighbour_links(topology)
    return machine


def neighbour_links(topology: str) -> list[str]:
    """Links GPU0-GPU1, GPU2-GPU3, ... from the matrix that `nvidia-smi topo -m` prints."""
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line).split() for line in topology.splitlines()]
    # The head line also begins with GPU0, and goes on with GPU1.
    rows = [row for row in rows if len(row) > 1 and re.fullmatch(r"GPU\d+", row[0]) and not row[1].startswith("GPU")]
    return [rows[i][i + 2] for i in range(0, len(rows) - 1, 2) if len(rows[i]) > i + 2]


def trainer_memory(args: argparse.Namespace) -> dict[str, float]:
    """Terms of a trainer card's peak, in GB, at the longest samples."""
    tokens = args.prompt_max_len + args.generate_max_len
    samples = args.micro_train_batch_size
    if args.micro_batch_max_tokens and args.loss_normalizer == "constant":
        samples = max(1, min(samples, args.micro_batch_max_tokens // tokens))
    ranks = args.actor_num_nodes * args.actor_num_gpus_per_node
    return {
        "eager attention": EAGER_BYTES * samples * HEADS * tokens**2 / GB,
        "gathered layers": 2 * LAYER_GB,
        "checkpointed activations": samples * tokens * HIDDEN * LAYERS * 2 / GB,
        "logprobs": LOGITS_GB if args.logprob_chunk_rows else 4 * 201_088 * 4 * samples * tokens / GB,
        "parameters": 0.0 if args.offload else BASE_GB / ranks,
        "runtime": RUNTIME_GB,
    }


def engine_memory(args: argparse.Namespace) -> dict[str, float]:
    """Terms of an engine card, in GB."""
    return {"weights": MXFP4_GB / args.vllm_tensor_parallel_size + 0.5, "activations and graphs": 3.0, "runtime": RUNTIME_GB}


def shown(terms: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.1f}" for name, value in terms.items() if value >= 0.05)
    return f"{sum(terms.values()):.1f} GB ({parts})"


def rated(good: bool, bad_level: str, check: str, seen: str, remedy: str) -> Finding:
    """`ok` without a remedy, or `bad_level` with it."""
    return Finding(OK, check, seen) if good else Finding(bad_level, check, seen, remedy)


def check_hardware(args: argparse.Namespace, machine: Machine) -> list[Finding]:
    if machine.gpus is None:
        return [Finding(UNKNOWN, "GPUs", "no nvidia-smi here: number, memory, capability, driver and links were not checked")]
    needed, found = devices_needed(args), len(machine.gpus)
    remedy = "fewer engines or actor ranks, or RAY_ADDRESS of a cluster"
    findings = [rated(found >= needed, STOP, "GPUs", f"{found}, the run needs {needed}", remedy)]
    if not machine.gpus:
        return findings
    weakest = min(gpu["capability"] for gpu in machine.gpus)
    remedy = f"bf16 and the MXFP4 kernels need {LEAST_CAPABILITY} (Ampere)"
    findings.append(rated(weakest >= LEAST_CAPABILITY, STOP, "compute capability", f"{weakest}", remedy))
    driver = min(gpu["driver"] for gpu in machine.gpus)
    remedy = f"the pinned torch is built for CUDA 12.8: driver {LEAST_DRIVER} or later"
    findings.append(rated(driver >= LEAST_DRIVER, WARNING, "driver", f"{driver}", remedy))
    fast = not any(link in ("SYS", "NODE") for link in machine.links)
    remedy = "an engine's two shards talk across sockets; reorder CUDA_VISIBLE_DEVICES"
    findings.append(rated(fast, WARNING, "links between neighbouring GPUs", ", ".join(machine.links) or "unknown", remedy))
    return [*findings, *check_card_memory(args, min(gpu["memory_gb"] for gpu in machine.gpus))]


def check_card_memory(args: argparse.Namespace, card: float) -> list[Finding]:
    """Estimates for one card of `card` GB."""
    findings = []
    for name, terms, remedy in (
        (
            "trainer card",
            trainer_memory(args),
            "lower --micro_batch_max_tokens or --generate_max_len",
        ),
        ("engine card", engine_memory(args), "raise --vllm_tensor_parallel_size"),
    ):
        total, check, seen = sum(terms.values()), f"memory of each {name} (estimate)", f"{shown(terms)} of {card:.1f} GB"
        findings.append(rated(total <= 0.9 * card, STOP if total > card else WARNING, check, seen, remedy))
    return findings


def check_host(args: argparse.Namespace, machine: Machine) -> list[Finding]:
    tiny = Path(args.pretrain, "config.json").is_file() and config_hidden(args) < HIDDEN
    needed = (BASE_GB * 1.1 if args.offload and not tiny else 0.0) + 12.0  # pinned copies; Ray, engines and data
    memory = f"{machine.memory_gb:.0f} GB, the run needs about {needed:.0f}"
    return [
        rated(machine.memory_gb >= needed, STOP, "host memory", memory, "--no_offload, or a host with more memory"),
        rated(machine.shm_gb >= LEAST_SHM_GB, WARNING, "shared memory", f"{machine.shm_gb:.0f} GB",
              "Ray's object store and NCCL use /dev/shm; in a container --shm-size 16g"),
        rated(machine.disk_gb >= LEAST_DISK_GB, STOP, "disk", f"{machine.disk_gb:.0f} GB free",
              f"checkpoints and logs need {LEAST_DISK_GB:.0f} GB"),
    ]  # fmt: skip


def config_hidden(args: argparse.Namespace) -> int:
    return json.loads(Path(args.pretrain, "config.json").read_text()).get("hidden_size", HIDDEN)


def pins(path: Path) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(), re.MULTILINE)
    return {name: version.split(";")[0].strip() for name, version in found}


def check_software(requirements: Path) -> list[Finding]:
    from gptoss_rl.patch_stack import PatchStackError, check_stack

    findings = []
    try:
        check_stack()
        findings.append(Finding(OK, "patch stack", "OpenRLHF is pristine + patches/series"))
    except PatchStackError as error:
        findings.append(Finding(STOP, "patch stack", str(error), "bash apply_patches.sh"))
    wrong = []
    for name in ("torch", "transformers", "deepspeed", "ray", "peft", "openrlhf"):
        wanted = pins(requirements).get(name)
        seen = installed_version(name)
        if wanted and seen.split("+")[0] != wanted.split("+")[0]:
            wrong.append(f"{name} {seen}, pinned {wanted}")
    findings.append(Finding(STOP if wrong else OK, "pinned versions", "; ".join(wrong) or f"as in {requirements.name}",
                            "rm -rf .venv && bash setup_env.sh" if wrong else ""))  # fmt: skip
    return findings


def installed_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def check_checkpoints(args: argparse.Namespace) -> list[Finding]:
    """Both directories are there, whole, and one model; only the engines' may be quantised."""
    trainer, engine = Path(args.pretrain), Path(args.vllm_pretrain or args.pretrain)
    configs = {}
    for path in {trainer, engine}:
        if not (path / "config.json").is_file():
            remedy = "hf download openai/gpt-oss-20b; the BF16 directory is its dequantisation"
            return [Finding(STOP, "checkpoints", f"{path} is no model directory", remedy)]
        configs[path] = json.loads((path / "config.json").read_text())
        index = path / "model.safetensors.index.json"
        if index.is_file():
            lacking = [f for f in sorted(set(json.loads(index.read_text())["weight_map"].values())) if not (path / f).is_file()]
            if lacking:
                return [Finding(STOP, "checkpoints", f"{path} lacks {lacking[0]} ({len(lacking)} shards)", "download it again")]
    shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_local_experts", "vocab_size", "sliding_window")
    differing = [key for key in shape if configs[trainer].get(key) != configs[engine].get(key)]
    findings = []
    if differing:
        findings.append(
            Finding(STOP, "checkpoints", f"{trainer} and {engine} differ in {', '.join(differing)}", "use one model's")
        )
    if configs[trainer].get("quantization_config"):
        findings.append(Finding(STOP, "checkpoints", f"{trainer} is quantised", "train on the BF16 dequantisation"))
    return [*(findings or [Finding(OK, "checkpoints", f"{trainer} and {engine} are one model's")]), check_tokenizer(trainer)]


def check_tokenizer(folder: Path) -> Finding:
    """Harmony's markers are single tokens; else the model would see them as text."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return Finding(STOP, "tokenizer", f"{path} is missing", "copy it from the released checkpoint")
    tokenizer = Tokenizer.from_file(str(path))
    split = [m for m in HARMONY_MARKERS[:6] if len(tokenizer.encode(m, add_special_tokens=False).ids) != 1]
    if split:
        return Finding(
            STOP, "tokenizer", f"{', '.join(split)} are several tokens", "use the released checkpoint's tokenizer.json"
        )
    return Finding(OK, "tokenizer", "Harmony's markers are single tokens")


def check_data(args: argparse.Namespace) -> list[Finding]:
    for flag in ("prompt_data", "eval_dataset"):
        path = getattr(args, flag)
        if path and not Path(path).is_file():
            return [
                Finding(STOP, "data", f"--{flag} {path} is missing", "make it with filter_numinamath.py and build_ood_1000.py")
            ]
    try:
        train = read_prompts(Path(args.prompt_data), args.input_key, args.label_key)
        check_labels(train, args.prompt_data)
        evaluation = read_prompts(Path(args.eval_dataset), args.input_key, args.label_key) if args.eval_dataset else []
        check_disjoint(train, evaluation)
        check_length(args, min(len(train), int(args.max_samples)))
    except GateError as error:
        return [Finding(STOP, "data", str(error), "see the message")]
    return [Finding(OK, "data", f"{len(train):,} training and {len(evaluation):,} evaluation problems, disjoint")]


def check_flag_combinations(args: argparse.Namespace) -> list[Finding]:
    problems = flag_problems(args)
    return [Finding(STOP, "flags", problem, "see the message") for problem in problems] or [
        Finding(OK, "flags", "no known-bad combination")
    ]


def examine(args: argparse.Namespace, machine: Machine, requirements: Path) -> list[Finding]:
    """Everything, the cheap first."""
    return [
        *check_hardware(args, machine),
        *check_host(args, machine),
        *check_software(requirements),
        *check_flag_combinations(args),
        *check_checkpoints(args),
        *check_data(args),
    ]
