"""Cards, host, shared memory, object store and disk against what the flags ask for."""

import argparse

from gptoss_rl.doctor.findings import GB, OK, STOP, UNKNOWN, WARNING, Finding, rated, shown
from gptoss_rl.doctor.machine import Machine
from gptoss_rl.doctor.sizes import (
    disk,
    engine_memory,
    host_memory,
    is_20b,
    object_store,
    samples_per_micro_batch,
    trainer_memory,
)
from gptoss_rl.errors import GateError
from gptoss_rl.sync.cluster import OBJECT_STORE_BYTES, check_ray, cluster_address, devices_needed

LEAST_CAPABILITY, LEAST_DRIVER = 8.0, 580  # bf16 and Marlin's MXFP4; CUDA 13 (NVIDIA's CUDA release notes)
LEAST_SHM_GB = 8.0
# Peak of a trainer card over the estimate, cached blocks included: 16.4 against 10.8 GB (results/2026-11-25_h100). Short of
# memory, torch gives cached blocks back, so this is no need; a card on which it fits has room to spare.
TRAINER_PEAK = 1.5
BUSY_GB = 1.0  # of a card that some other process holds
RAY_STORE_SHARE = 0.3  # of memory, within 95 % of /dev/shm: Ray 2.48, ray_constants.py:76 and resource_spec.py:225-263
RAY_DISK_LIMIT = 0.95  # of its temporary disk: above it Ray creates no object; RAY_local_fs_capacity_threshold


def check_devices(args: argparse.Namespace, machine: Machine) -> list[Finding]:
    """Enough devices, and what the cards are."""
    needed = devices_needed(args)
    if cluster_address() is not None:
        seen = f"{needed} needed of the cluster at RAY_ADDRESS, which is asked when the run starts"
        return [Finding(UNKNOWN, "GPUs", seen), *check_card_memory(args, None)]
    if args.num_devices is not None:
        seen = f"{args.num_devices} logical devices (--num_devices) for {needed}; no card is used or was checked"
        return [rated(args.num_devices >= needed, STOP, "GPUs", seen, f"--num_devices {needed}")]
    if machine.gpus is None:
        seen = f"{needed} needed; no nvidia-smi here: number, memory, capability, driver and links were not checked"
        return [Finding(UNKNOWN, "GPUs", seen), *check_card_memory(args, None)]
    seen = f"{len(machine.gpus)}, the run needs {needed}"
    remedy = "fewer engines or actor ranks, RAY_ADDRESS of a cluster, or --num_devices on a CPU"
    if machine.smi_said:
        seen, remedy = f"{seen}; nvidia-smi says: {machine.smi_said}", "repair the driver until nvidia-smi lists the cards"
    enough = rated(len(machine.gpus) >= needed, STOP, "GPUs", seen, remedy)
    return [enough, *(check_cards(args, machine) if machine.gpus else check_card_memory(args, None))]


def check_cards(args: argparse.Namespace, machine: Machine) -> list[Finding]:
    """What the cards are, that they are free, and that the run fits; a figure that is not known was not checked."""
    gpus = machine.gpus or []
    unread = sorted({key for gpu in gpus for key in gpu if gpu[key] is None})
    weakest, driver = machine.least("capability"), machine.least("driver")
    busy = [f"GPU {i}: {gpu['used_gb']:.1f} GB" for i, gpu in enumerate(gpus) if (gpu["used_gb"] or 0.0) > BUSY_GB]
    near = not any(link in ("SYS", "NODE") for link in machine.links)
    findings = [Finding(UNKNOWN, "cards", f"nvidia-smi does not give {', '.join(unread)} of every card")] if unread else []
    if weakest is not None:
        findings.append(rated(weakest >= LEAST_CAPABILITY, STOP, "compute capability", f"{weakest}",
                              f"bf16 and the MXFP4 kernels need {LEAST_CAPABILITY} (Ampere)"))  # fmt: skip
    if driver is not None:
        findings.append(rated(driver >= LEAST_DRIVER, WARNING, "driver", f"{driver:.0f}",
                              f"CUDA 13.0 needs driver {LEAST_DRIVER} or newer, or NVIDIA's cuda-compat-13-0"))  # fmt: skip
    findings += [
        rated(not busy, WARNING, "cards in use", ", ".join(busy) or "none",
              "another process holds memory that the estimates below count on: see nvidia-smi, or set CUDA_VISIBLE_DEVICES"),
        rated(near, WARNING, "links between neighbouring GPUs", ", ".join(machine.links) or "unknown",
              "an engine's two shards talk across sockets; reorder CUDA_VISIBLE_DEVICES"),
    ]  # fmt: skip
    return [*findings, *check_card_memory(args, machine.least("memory_gb"))]


def check_card_memory(args: argparse.Namespace, card: float | None) -> list[Finding]:
    """Estimates for one card of `card` GB; of gpt-oss-20b, whose figures they are. None: the card is not here."""
    if not is_20b(args):
        return [Finding(UNKNOWN, "memory of each card", "the estimate is gpt-oss-20b's, and this is a smaller model")]
    findings = []
    for name, terms, peak, remedy in (
        ("trainer card", trainer_memory(args), TRAINER_PEAK, trainer_remedy(args)),
        ("engine card", engine_memory(args), 1.1, "raise --vllm_tensor_parallel_size, or serve the MXFP4 checkpoint"),
    ):
        total, check = sum(terms.values()), f"memory of each {name} (estimate)"
        kept = f"up to {peak * total:.1f} with what the allocator keeps"
        if card is None:
            findings.append(Finding(UNKNOWN, check, f"{shown(terms)} of a card that is not here; {kept}"))
        else:
            seen = f"{shown(terms)} of {card:.1f} GB; {kept}"
            findings.append(rated(peak * total <= card, STOP if total > card else WARNING, check, seen, remedy))
    return findings


def trainer_remedy(args: argparse.Namespace) -> str:
    """What makes the estimate of a trainer card smaller: fewer samples at once while there are several, then shorter ones."""
    ways = ["lower --generate_max_len"]
    if samples_per_micro_batch(args) > 1:
        one = f"--micro_batch_max_tokens {args.prompt_max_len + args.generate_max_len}"
        ways.insert(0, one if args.loss_normalizer == "constant" else "lower --micro_train_batch_size")
    if not args.offload:
        ways.append("pass --offload")
    return ", or ".join(ways)


def check_host(args: argparse.Namespace, machine: Machine, steps: int, evaluated: int) -> list[Finding]:
    """Memory and disk of the host, for a run of `steps` global steps that evaluates on `evaluated` problems."""
    space = disk(args, steps, evaluated)
    return [
        check_start_of_ray(args),
        check_host_memory(args, machine),
        rated(machine.shm_gb >= LEAST_SHM_GB, WARNING, "shared memory", f"{machine.shm_gb:.0f} GB",
              "Ray's object store and NCCL use /dev/shm; in a container --shm-size 16g"),
        check_object_store(args, machine),
        rated(machine.disk_gb >= sum(space.values()), STOP, "disk",
              f"{machine.disk_gb:.0f} GB free, the run writes up to {shown(space)}",
              "free space, move --run_dir, or lower --max_ckpt_num"),
        rated(machine.temporary_used < RAY_DISK_LIMIT, WARNING, "temporary disk", f"{machine.temporary_used:.0%} used",
              f"above {RAY_DISK_LIMIT:.0%} Ray creates no objects; free space or set RAY_TMPDIR"),
    ]  # fmt: skip


def check_start_of_ray(args: argparse.Namespace) -> Finding:
    """What the launch asks as well: an address that answers, folders for sockets, room for the object store."""
    try:
        check_ray(args)
    except GateError as error:
        return Finding(STOP, "Ray", str(error))
    return Finding(OK, "Ray", "its address answers" if cluster_address() is not None else "can start here")


def check_host_memory(args: argparse.Namespace, machine: Machine) -> Finding:
    """The host's memory, within the limit of a container, and what other processes leave of it."""
    terms = host_memory(args)
    needed, needs = sum(terms.values()), f"the run needs about {shown(terms)}"
    if machine.memory_gb >= needed:
        seen = f"{machine.memory_gb:.0f} GB, {needs}"
        if machine.available_gb < needed:
            seen = f"{machine.available_gb:.0f} of {machine.memory_gb:.0f} GB are available, {needs}"
        return rated(machine.available_gb >= needed, WARNING, "host memory", seen, "end what else runs on this host")
    card = machine.least("memory_gb")
    on_cards = sum(trainer_memory(argparse.Namespace(**{**vars(args), "offload": False})).values())
    fits = args.offload and card is not None and on_cards <= card
    remedy = ("--no_offload (the trainer cards would hold it), or " if fits else "") + "a host with more memory"
    return Finding(STOP, "host memory", f"{machine.memory_gb:.0f} GB, {needs}", remedy)


def check_object_store(args: argparse.Namespace, machine: Machine) -> Finding:
    """Ray's object store, as large as the run will start it, against what a step puts into it."""
    if cluster_address() is not None:
        return Finding(UNKNOWN, "object store", "the cluster's at RAY_ADDRESS")
    size = min(RAY_STORE_SHARE * machine.memory_gb, 0.95 * machine.shm_gb)
    if args.num_devices is not None:
        size = OBJECT_STORE_BYTES / GB
    terms = object_store(args)
    seen = f"{size:.1f} GB, a step holds up to {shown(terms)}"
    remedy = "what does not fit goes to disk: give /dev/shm more (--shm-size), or lower --rollout_batch_size"
    return rated(sum(terms.values()) <= size, WARNING, "object store", seen, remedy)
