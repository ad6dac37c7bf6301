"""Records of evaluations: what made them, whether they are whole, and whether two can be compared."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gptoss_rl.evaluation.serving import Served
from gptoss_rl.evaluation.sets import Decoding, EvaluationError, Problem
from gptoss_rl.flags import EVALUATION_FLAGS
from gptoss_rl.models.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gptoss_rl.models.folder import base_fingerprint, file_digest, weights_digest
from gptoss_rl.records import by_problem, by_step, drawn_twice, shares
from gptoss_rl.run_files import read_json, read_json_lines
from gptoss_rl.stats import Score, pass_at_every_k, score, tier_of
from gptoss_rl.versions import stack_versions


def identity(served: Served, problems: list[Problem], decoding: Decoding, seed: int, tp_size: int) -> dict[str, Any]:
    """What a file of records was made with; a resumed evaluation must be the same, down to the versions of the stack."""
    texts = hashlib.sha256("\n".join(f"{p.id} {p.label}" for p in problems).encode()).hexdigest()[:16]
    adapter, merged = served.adapter, read_json(served.model / "merge_meta.json").get("adapter_sha256")
    return {
        "model": str(served.model.resolve()),
        "model_config": file_digest(served.model / "config.json"),
        "model_weights": weights_digest(served.model),
        "base_fingerprint": base_fingerprint(served.model),
        "merged_adapter": merged[:16] if merged else None,
        "tokenizer": file_digest(served.model / "tokenizer.json"),
        "adapter": str(adapter.resolve()) if adapter else None,
        "adapter_digest": file_digest(adapter / ADAPTER_WEIGHTS) if adapter else None,
        "adapter_config": file_digest(adapter / ADAPTER_CONFIG) if adapter else None,
        "problems": texts,
        "n": len(problems),
        "decoding": asdict(decoding),
        "seed": seed,
        "engine": {"name": "vllm", "dtype": "bfloat16", "tensor_parallel_size": tp_size},
        "stack": stack_versions(),
    }


def header_path(records: Path) -> Path:
    return records.with_suffix(".identity.json")


def check_header(records: Path, header: dict[str, Any]) -> None:
    """Raises EvaluationError when there are records already, and they were not made with what `header` says."""
    path = header_path(records)
    if not records.is_file() or not records.stat().st_size:
        return
    if not path.is_file():
        raise EvaluationError(f"{records} exists without {path.name}: nobody knows what it was made with; move it away")
    old, new = _flat(read_json(path)), _flat(header)
    different = [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in old | new if old.get(key) != new.get(key)]
    if different:
        raise EvaluationError(f"{records} was begun with something else ({'; '.join(different)}); choose another --output")


def _flat(header: dict[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a.b": 1}, one level deep as identities are."""
    flat = {}
    for key, value in header.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, by problem."""

    path: Path
    shares: dict[str, float]  # problem id -> share of right samples
    rows: list[dict[str, Any]]
    decoding: dict[str, Any] | None
    step: int | None = None  # of a run
    problems: str | None = None  # digest of the set, from the identity beside the records

    @property
    def score(self) -> Score:
        return score(list(self.shares.values()))


def load_evaluation(path: Path, step: int | None = None) -> Evaluation:
    """Records of an evaluation; of a run's eval.jsonl those of `step`, by default the last.

    Raises:
        EvaluationError: the file holds none, or not every response once.
    """
    every = list(read_json_lines(path))
    if not all(isinstance(row, dict) and "id" in row and "correct" in row for row in every):
        raise EvaluationError(f"{path}: rows have no id or no correct")
    steps = by_step(every)
    if step is None and steps:
        step = list(steps)[-1]
    rows = steps.get(step, [])
    if not rows:
        raise EvaluationError(f"{path} holds no evaluation{'' if step is None else f' of step {step}'}")
    decoding, header = decoding_of(path), read_json(header_path(path))
    most = max(len(by_problem(found)) for found in steps.values())
    _check_whole(path, rows, header.get("n", most), decoding)
    return Evaluation(path, shares(rows), rows, decoding, step, header.get("problems"))


def _check_whole(path: Path, rows: list[dict[str, Any]], problems: int, decoding: dict[str, Any] | None) -> None:
    """Raises EvaluationError unless every response of every problem stands there once."""
    counts = {key: len(found) for key, found in by_problem(rows).items()}
    samples = decoding["n_samples"] if decoding else max(counts.values())
    if twice := drawn_twice(rows):
        raise EvaluationError(f"{path}: {len(twice)} responses stand there twice, first one to problem {twice[0][0]}")
    lacking = problems * samples - len(rows)
    if lacking > 0:
        raise EvaluationError(f"{path} lacks {lacking} of {problems * samples} responses: the evaluation is not finished")
    uneven = [key for key, count in counts.items() if count != samples]
    if uneven:
        raise EvaluationError(f"{path}: {len(uneven)} problems do not have {samples} responses, first {uneven[0]}")
    if len(counts) != problems:
        raise EvaluationError(f"{path} holds {len(counts)} problems, the evaluation was of {problems}")


def decoding_of(path: Path) -> dict[str, Any] | None:
    """How records were decoded: from the identity beside them, or of a run's eval.jsonl from the flags of the run's lives.

    Raises:
        EvaluationError: the lives decoded differently, so that the records do not say one thing.
    """
    header = header_path(path)
    if header.is_file():
        return json.loads(header.read_text())["decoding"]
    lives = sorted(path.parent.glob("config*.json")) if path.name == "eval.jsonl" else []
    found = [_decoding_of_flags(json.loads(life.read_text())) for life in lives]
    if any(decoding != found[0] for decoding in found):
        raise EvaluationError(f"{path}: the run was resumed with another decoding ({', '.join(life.name for life in lives)})")
    return asdict(found[0]) if found else None


def _decoding_of_flags(flags: dict[str, Any]) -> Decoding:
    return replace(Decoding.of(*(flags[name] for name in EVALUATION_FLAGS)), prompt_fingerprint=flags["prompt_fingerprint"])


def refuse_different(a: Evaluation, b: Evaluation, *, allow_unknown: bool = False) -> None:
    """Raises EvaluationError unless both saw the same problems with the same labels, in the same prompt, decoded alike.

    Args:
        allow_unknown: let records pass that do not say how they were decoded.
    """
    if a.shares.keys() != b.shares.keys():
        raise EvaluationError(
            f"{a.path} and {b.path} are not of the same problems: {len(a.shares.keys() - b.shares.keys())} only in the first, "
            f"{len(b.shares.keys() - a.shares.keys())} only in the second"
        )
    labels, others = ({row["id"]: str(row["label"]) for row in one.rows if "label" in row} for one in (a, b))
    relabelled = [key for key in labels.keys() & others.keys() if labels[key] != others[key]]
    if relabelled:
        shown = f"first {min(relabelled)}: {labels[min(relabelled)]} against {others[min(relabelled)]}"
        raise EvaluationError(f"{a.path} and {b.path} have different labels for {len(relabelled)} problems, {shown}")
    if a.problems and b.problems and a.problems != b.problems:
        raise EvaluationError(
            f"{a.path} and {b.path} were made from sets that differ in a problem, a label or the order ({a.problems} against "
            f"{b.problems})"
        )
    unknown = [one.path for one in (a, b) if one.decoding is None]
    if unknown and not allow_unknown:
        raise EvaluationError(
            f"nobody knows how {unknown[0]} was decoded: {header_path(unknown[0]).name} is not beside it; pass "
            "--allow-unknown-decoding to compare all the same"
        )
    if a.decoding and b.decoding and a.decoding != b.decoding:
        shown = "; ".join(
            f"{k}: {a.decoding[k]} against {b.decoding.get(k)}" for k in a.decoding if a.decoding[k] != b.decoding.get(k)
        )
        raise EvaluationError(f"{a.path} and {b.path} were decoded differently ({shown}); their scores cannot be compared")


def summarise(name: str, records: Path, eval_set: Path) -> dict[str, Any]:
    """Figures of a finished evaluation, with the identity that stands beside its records: what made them, not what is here now.

    Raises:
        EvaluationError: records or their identity are missing.
    """
    evaluation, header = load_evaluation(records), read_json(header_path(records))
    if not header:
        raise EvaluationError(f"{header_path(records)} is missing or damaged: nobody knows what the records were made with")
    rows, right = evaluation.rows, Counter(row["id"] for row in evaluation.rows if row["correct"])
    samples = header["decoding"]["n_samples"]
    result: dict[str, Any] = {
        "name": name,
        "eval_set": str(eval_set),
        "tier": tier_of(header["n"], str(eval_set)).name,
        "score": asdict(evaluation.score),
        "truncated": sum(row["finish_reason"] == "length" for row in rows),
        "no_answer": sum(row["answer"] is None for row in rows),
        "not_a_number": sum(row["answer"] is not None and row["value"] is None for row in rows),
        "tokens_mean": sum(row["tokens"] for row in rows) / len(rows),
        **header,
    }
    if samples > 1:
        every = pass_at_every_k([right[key] for key in evaluation.shares], samples)
        result["pass_at_k"] = {str(k): asdict(found) for k, found in every.items()}
    return result
