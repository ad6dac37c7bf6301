r"""The base model before training: which problems it solves how often, and which set has something to teach.

Draws --n_samples responses to each of the first --limit problems of each candidate set. A group of eight samples teaches GRPO
something only when some are right and some are wrong; a set's learning zone is the share of its problems whose solve rate lies
in the band. The records are what `filter_numinamath.py --solve_rates` reads. What is to be trained on and what is to be
evaluated on are named apart, because nothing in a file says it for certain.

    python eval_baseline.py --model_path models/gpt-oss-20b --train_set data/sft_rl_pool_3200.jsonl \
        --eval_set data/probe_set_200.jsonl data/probe_set_200_ood.jsonl --auto-symlink
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gptoss_rl.data.files import DataError, check_writable, manifest_path, read_manifest
from gptoss_rl.errors import GateError
from gptoss_rl.evaluation import (
    Decoding,
    EvaluationError,
    Job,
    Served,
    add_decoding,
    evaluate,
    load_evaluation,
    prepare,
    read_problems,
    read_sets,
    summarise,
)
from gptoss_rl.run_files import write_json_atomically
from gptoss_rl.stats import tier_of

LINKS = {"train_set": "train_prompts.jsonl", "eval_set": "eval_prompts.jsonl"}
TRAINING_ROLES = ("pool", "train", "math45")  # of a manifest; the others are for evaluation
BAND = (0.05, 0.95)  # solve rates; outside, most groups of eight have no variance
BINS = 10


def histogram(rates: list[float]) -> list[int]:
    """Problems by solve rate, in tenths; the last bin holds 1.0."""
    counts = Counter(min(int(rate * BINS), BINS - 1) for rate in rates)
    return [counts[i] for i in range(BINS)]


def in_zone(rates: list[float], band: tuple[float, float] = BAND) -> float:
    return sum(band[0] <= rate <= band[1] for rate in rates) / len(rates)


def check_roles(sets: dict[str, list[Path]]) -> None:
    """Raises EvaluationError when a file's manifest says that it is for the other purpose than the flag that names it."""
    for flag, path in ((flag, path) for flag, paths in sets.items() for path in paths if manifest_path(path).is_file()):
        try:
            role = read_manifest(path).get("role")
        except DataError as error:
            raise EvaluationError(str(error)) from error
        if role is not None and (role in TRAINING_ROLES) != (flag == "train_set"):
            raise EvaluationError(f"--{flag} {path}: its manifest says that its role is {role}; name it under the other flag")


def check_links(sets: dict[str, list[Path]], folder: Path) -> None:
    """See that both links can be made, whichever sets are recommended.

    Raises:
        EvaluationError: a kind of set is missing, a training candidate holds a problem of an evaluation candidate, or the
            folder or a link cannot be written.
    """
    if not all(sets.values()):
        raise EvaluationError("--auto-symlink needs --train_set, to train on, and --eval_set, to evaluate on")
    ids = {path: {problem.id for problem in read_problems(path)} for paths in sets.values() for path in paths}
    for train in sets["train_set"]:
        for evaluation in sets["eval_set"]:
            if shared := ids[train] & ids[evaluation]:
                raise EvaluationError(f"{train} holds {len(shared)} problems of {evaluation}, first {min(shared)}")
    if not folder.is_dir():
        raise EvaluationError(f"--auto-symlink {folder}: there is no such folder")
    try:
        check_writable(folder)
    except OSError as error:
        raise EvaluationError(f"--auto-symlink {folder}: {error.strerror}") from error
    for name in LINKS.values():
        if (folder / name).exists() and not (folder / name).is_symlink():
            raise EvaluationError(f"{folder / name} is a file, not a link; move it away")
        if any((folder / name).absolute() == path.absolute() for paths in sets.values() for path in paths):
            raise EvaluationError(f"{folder / name} is itself a candidate; name the file that it points at")


def symlink(target: Path, link: Path) -> None:
    """Point `link` at `target` in one step. Both are resolved first: a relative link counts from where the folder really is."""
    link = link.parent.resolve() / link.name
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.symlink_to(os.path.relpath(target.resolve(), link.parent))
    os.replace(temporary, link)


def measure(job: Job, path: Path) -> list[float]:
    """Solve rates of a set; its records and summary are written."""
    evaluate(job)
    summary = summarise(job.served.name, job.records, path)
    rates = list(load_evaluation(job.records).shares.values())
    write_json_atomically(
        job.records.with_suffix(".summary.json"), {**summary, "histogram": histogram(rates), "in_zone": in_zone(rates)}
    )
    return rates


def report(rates: dict[Path, list[float]]) -> Table:
    table = Table(title="solve rates of the base model", title_justify="left")
    for head in ("set", "rated", "tier", "mean", "problems by solve rate, in tenths", "in the zone"):
        table.add_column(head, justify="left" if head in ("set", "tier") else "right")
    for path, values in rates.items():
        mean, bins = sum(values) / len(values), " ".join(map(str, histogram(values)))
        tier = tier_of(len(values), str(path)).name
        table.add_row(path.stem, str(len(values)), tier, f"{mean:.1%}", bins, f"{in_zone(values):.1%}")
    return table


def recommend(rates: dict[Path, list[float]], sets: dict[str, list[Path]], folder: Path | None) -> None:
    """Name the set of each kind with the largest zone, and link it in `folder`."""
    best = {flag: max(paths, key=lambda path: in_zone(rates[path])) for flag, paths in sets.items() if paths}
    for flag, path in best.items():
        purpose, zone = {"train_set": "training", "eval_set": "evaluation"}[flag], in_zone(rates[path])
        print(
            f"recommended for {purpose}: {path} ({zone:.1%} of the {len(rates[path])} problems that were rated lie in the zone)"
        )
    for flag, path in best.items() if folder else ():
        symlink(path, folder / LINKS[flag])
        print(f"{folder / LINKS[flag]} -> {path}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", type=Path, required=True, help="the base model's directory")
    parser.add_argument(
        "--train_set", type=Path, nargs="+", default=[], help="candidates for training: JSON lines, input and label"
    )
    parser.add_argument("--eval_set", type=Path, nargs="+", default=[], help="candidates for evaluation")
    parser.add_argument("--limit", type=int, default=200,
        help="problems of each set, from its beginning; the others are not rated; default: 200")  # fmt: skip
    add_decoding(parser, temperature=1.0, n_samples=8)  # as in training
    parser.add_argument("--output", type=Path, default=Path("evals"), help="folder; default: evals")
    parser.add_argument("--auto-symlink", "--auto_symlink", type=Path, nargs="?", const=Path("data"), metavar="DIR",
        help="link train_prompts.jsonl and eval_prompts.jsonl in DIR (data when left out) to the recommended sets; "
        "default: no links")  # fmt: skip
    return parser.parse_args(argv)


def main() -> None:
    args = parse_arguments()
    sets = {"train_set": args.train_set, "eval_set": args.eval_set}
    try:
        decoding = Decoding.of(args.temperature, args.max_tokens, args.n_samples, args.reasoning_effort)
        problems = read_sets([*args.train_set, *args.eval_set], args.limit)
        if not problems:
            raise EvaluationError("name candidates: --train_set FILE, --eval_set FILE")
        check_roles(sets)
        if args.auto_symlink:
            check_links(sets, args.auto_symlink)
        served = Served("baseline", args.model_path)
        jobs = {
            path: prepare(served, chosen, decoding, args.output / path.stem / "baseline.jsonl", tp_size=args.tp, seed=args.seed)
            for path, chosen in problems.items()
        }
        rates = {path: measure(job, path) for path, job in jobs.items()}
        Console().print(report(rates))
        print(f"rated: the first {args.limit} problems of a set at most (--limit); the rates of the others are not known")
        recommend(rates, sets, args.auto_symlink)
    except (EvaluationError, GateError, OSError) as error:
        sys.exit(f"eval_baseline: {error}")
    except KeyboardInterrupt:
        sys.exit("eval_baseline: interrupted; the same command goes on where it stopped")


if __name__ == "__main__":
    main()
