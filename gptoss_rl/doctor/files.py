"""Checkpoints, tokenizer, data and directory of a run."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from gptoss_rl.doctor.findings import OK, STOP, WARNING, Finding, rated
from gptoss_rl.doctor.sizes import config
from gptoss_rl.errors import GateError
from gptoss_rl.models.folder import INDEX, CheckpointError, Weights, base_fingerprint
from gptoss_rl.prompts import HARMONY_MARKERS, render_prompt
from gptoss_rl.run.directory import check_unoccupied
from gptoss_rl.run.launch_gates import check_data, missing_data
from gptoss_rl.run.resume import check_resume

SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_local_experts", "vocab_size", "sliding_window")


def check_checkpoints(args: argparse.Namespace) -> list[Finding]:
    """Both directories are there, whole, and one model; only the engines' may be quantised."""
    trainer, engine = Path(args.pretrain), Path(args.vllm_pretrain or args.pretrain)
    faults = [fault for path in dict.fromkeys((trainer, engine)) if (fault := incomplete(path))]
    if faults:
        return faults
    ours, theirs = config(args.pretrain), config(str(engine))
    findings = []
    differing = [key for key in SHAPE if ours.get(key) != theirs.get(key)]
    if differing:
        findings.append(
            Finding(STOP, "checkpoints", f"{trainer} and {engine} differ in {', '.join(differing)}", "use one model's")
        )
    elif trainer.resolve() != engine.resolve():
        findings += check_same_weights(trainer, engine)
    else:
        findings.append(Finding(OK, "checkpoints", f"{trainer} for trainer and engines"))
    if ours.get("quantization_config"):
        findings.append(
            Finding(STOP, "checkpoints", f"{trainer} is quantised", "train on what dequantize_mxfp4.py makes of it")
        )
    return [*findings, check_tokenizer(trainer)]


def incomplete(path: Path) -> Finding | None:
    """A directory that is none, or holds a damaged file, or lacks a shard of its index."""
    if not (path / "config.json").is_file():
        remedy = "the README (On eight A30) has the download; python dequantize_mxfp4.py makes the BF16 directory"
        return Finding(STOP, "checkpoints", f"{path} is no model directory", remedy)
    for name in ("config.json", INDEX):
        try:
            whole = not (path / name).is_file() or isinstance(json.loads((path / name).read_bytes()), dict)
        except ValueError:
            whole = False
        if not whole:
            return Finding(STOP, "checkpoints", f"{path / name} is cut off or damaged", "download it again")
    try:
        return None if Weights(path).files else Finding(STOP, "checkpoints", f"{path} holds no tensor", "download it again")
    except CheckpointError as error:
        return Finding(STOP, "checkpoints", str(error))


def check_same_weights(trainer: Path, engine: Path) -> list[Finding]:
    """The small tensors that both store unquantised are equal, so both come from one base; and so are the tokenizers."""
    ours, theirs = Weights(trainer), Weights(engine)
    names = sorted(set(ours.distinctive()) & set(theirs.distinctive()))
    for name in names:
        if not torch.equal(*(weights.read(name).to(torch.bfloat16) for weights in (ours, theirs))):
            seen = f"{trainer} and {engine} differ in {name}: not one base"
            return [
                Finding(STOP, "checkpoints", seen,
                        "run dequantize_mxfp4.py on the released checkpoint again, or serve the one it came from")
            ]  # fmt: skip
    if names and base_fingerprint(trainer) != base_fingerprint(engine):
        seen = f"{trainer} and {engine} differ in embeddings or attention: one of them is fine-tuned or merged"
        return [Finding(STOP, "checkpoints", seen, "serve and train one base; an adapter is trained on top of it")]
    if not names:
        return [Finding(STOP, "checkpoints", f"{trainer} and {engine} have no tensor in common", "use one model's")]
    vocabularies = [path / "tokenizer.json" for path in (trainer, engine)]
    if all(path.is_file() for path in vocabularies) and len({path.read_bytes() for path in vocabularies}) == 2:
        return [Finding(WARNING, "checkpoints", "their tokenizer.json differ", "copy the released checkpoint's into both")]
    return [Finding(OK, "checkpoints", f"{trainer} and {engine} are one model's: {len(names)} tensors are equal")]


def check_tokenizer(folder: Path) -> Finding:
    """Harmony's markers are single tokens; else the model would see them as text."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return Finding(STOP, "tokenizer", f"{path} is missing", "copy it from the released checkpoint")
    tokenizer = read_tokenizer(path)
    if tokenizer is None:
        return Finding(STOP, "tokenizer", f"{path} is cut off or damaged", "copy it from the released checkpoint")
    split = [m for m in HARMONY_MARKERS if len(tokenizer.encode(m, add_special_tokens=False).ids) != 1]
    if split:
        seen = f"{', '.join(split)} are several tokens"
        return Finding(STOP, "tokenizer", seen, "use the released checkpoint's tokenizer.json")
    return Finding(OK, "tokenizer", "Harmony's markers are single tokens")


def read_tokenizer(path: Path) -> Tokenizer | None:
    """None where there is none, or none that can be read."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises nothing narrower, whatever the fault
        return None


def examine_data(args: argparse.Namespace) -> tuple[list[Finding], int, int]:
    """The files are there, what their manifests say, gradable, disjoint and short enough.

    Returns:
        Findings; training prompts and evaluation problems, 0 where they could not be read.
    """
    missing = missing_data(args)
    if missing or args.prompt_data is None:
        remedy = "make it with filter_numinamath.py and build_ood_1000.py"
        return [Finding(STOP, "data", fault, remedy) for fault in missing or ["no --prompt_data is given"]], 0, 0
    try:
        train, evaluation = check_data(args)
    except GateError as error:
        return [Finding(STOP, "data", str(error))], 0, 0
    seen = f"{len(train):,} training and {len(evaluation):,} evaluation problems, disjoint"
    findings = [Finding(OK, "data", seen), *check_prompt_lengths(args, [*train[: int(args.max_samples)], *evaluation])]
    return findings, len(train), len(evaluation)


def check_prompt_lengths(args: argparse.Namespace, rows: list[dict[str, Any]]) -> list[Finding]:
    """Every prompt leaves room for its response; a run stops at the first that does not. Nothing without a tokenizer."""
    tokenizer = read_tokenizer(Path(args.pretrain, "tokenizer.json"))
    if tokenizer is None or not rows:
        return []
    texts = [render_prompt(row["problem"], args.reasoning_effort) for row in rows]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    long = sum(length > args.prompt_max_len for length in lengths)
    seen = f"the longest of {len(rows):,} has {max(lengths)} tokens, --prompt_max_len is {args.prompt_max_len}"
    if long:
        seen += f"; {long:,} are longer, and the run would stop at the first of them"
    return [rated(not long, STOP, "prompt lengths", seen, f"--prompt_max_len {max(lengths)}, or leave them out of the data")]


def examine_run_directory(args: argparse.Namespace) -> list[Finding]:
    """The run directory is free, or holds what is to be resumed; the launch asks by the same functions."""
    if args.run_dir is None or missing_data(args):
        return []  # which is said elsewhere; without the data nobody can tell whether they are those of the run
    try:
        check_unoccupied(args)
        if args.load_checkpoint:
            check_resume(args)
    except GateError as error:
        return [Finding(STOP, "run directory", str(error))]
    return [Finding(OK, "run directory", f"{args.run_dir} {'can be resumed' if args.load_checkpoint else 'is free'}")]
