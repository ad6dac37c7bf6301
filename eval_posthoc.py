"""Evaluate models on evaluation sets, through the engine and the adapter path of training.

Writes, under --output, SET/NAME.jsonl (a line a response), SET/NAME.summary.json, and a table. A killed evaluation goes on
where it stopped when the same command is given again. The first model is what the others are compared with, problem by
problem.

    python eval_posthoc.py --model_path merged --eval_set data/probe_set_1000_ood.jsonl
    python eval_posthoc.py --model_path models/gpt-oss-20b --adapter rl=runs/NAME/adapter --eval_set data/probe_set_200.jsonl
    python eval_posthoc.py --model base=models/gpt-oss-20b-bf16 --model rl=merged --eval_set data/probe_set_200.jsonl
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gptoss_rl.errors import GateError
from gptoss_rl.evaluation import (
    Decoding,
    EvaluationError,
    Job,
    Served,
    add_decoding,
    evaluate,
    header_path,
    load_evaluation,
    prepare,
    read_sets,
    refuse_different,
    summarise,
)
from gptoss_rl.run_files import read_json, write_json_atomically
from gptoss_rl.stats import Comparison, compare, conclusion, corrected, tier_label, tier_of


def named(text: str) -> tuple[str, Path]:
    """NAME=DIR, or a directory that names itself, also one with a `=` in it: a name has no slash.

    Raises:
        EvaluationError: there is a name without a directory, or the other way round.
    """
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        name, path = Path(text).absolute().name, text
    if not name or not path:
        raise EvaluationError(f"{text!r} is neither NAME=DIR nor DIR")
    return name, Path(path)


def models(args: argparse.Namespace) -> list[Served]:
    """Everything that is to be evaluated, the base of the adapters among it when it was named as a model.

    Raises:
        EvaluationError: nothing was named, an adapter has no base, or two have one name.
    """
    served = [Served(name, path) for name, path in map(named, args.model)]
    if args.model_path and (not args.adapter or args.with_base):
        served.insert(0, Served(args.model_path.absolute().name, args.model_path))
    if args.adapter and not args.model_path:
        raise EvaluationError("--adapter needs --model_path, the model that it was trained on")
    served += [Served(name, args.model_path, path) for name, path in map(named, args.adapter)]
    names = [one.name for one in served]
    if not served:
        raise EvaluationError("name a model: --model_path DIR or --model NAME=DIR")
    if len(set(names)) != len(names):
        raise EvaluationError(f"two models have one name ({', '.join(names)}); write --model NAME=DIR")
    return served


def others(folder: Path, files: list[Path]) -> list[Path]:
    """Records of a set that earlier commands made, of other models than `files`."""
    there = (path.with_name(path.name.replace(".identity.json", ".jsonl")) for path in folder.glob("*.identity.json"))
    return sorted(path for path in there if path not in files and path.is_file() and path.stat().st_size)


def checkpoints(headers: list[dict[str, Any]]) -> int:
    """How many trained checkpoints could be picked from.

    An adapter and what it was merged into are one. Of models that carry none, the first is what the others are compared with; a
    base counts once in both of its forms.
    """
    trained = {header.get("adapter_digest") or header.get("merged_adapter") for header in headers} - {None}
    plain = {
        header.get("base_fingerprint") or header["model"]
        for header in headers
        if not (header.get("adapter_digest") or header.get("merged_adapter"))
    }
    return len(trained) + max(0, len(plain) - 1)


def check_selection(set_name: str, headers: list[dict[str, Any]], earlier: list[Path], allowed: bool) -> None:
    """Raises EvaluationError when several checkpoints would be picked from on the set they are reported on.

    Args:
        headers: what is to be evaluated.
        earlier: records of the set that other commands made.
    """
    several = checkpoints([*headers, *(read_json(header_path(path)) for path in earlier)])
    if several < 2 or allowed:
        return
    seen = f" (with {', '.join(path.stem for path in earlier)}, evaluated before)" if earlier else ""
    raise EvaluationError(
        f"{several} checkpoints on {set_name}{seen} invite picking the best and reporting it on the very set it was picked on; "
        "pick on another set, or pass --allow-selection-on-test: the table then says so and corrects p-values and intervals"
    )


def compare_all(files: list[Path], selected: bool, earlier: list[Path] = ()) -> list[Comparison]:
    """Each later file against the first.

    Args:
        selected: correct for picking the best of them and of `earlier`, as far as those can be compared with the first.
    """
    first, results = load_evaluation(files[0]), []
    keys = sorted(first.shares)
    for path in [*files[1:], *earlier]:
        try:
            other = load_evaluation(path)
            refuse_different(first, other)
        except EvaluationError:
            if path in earlier:  # unfinished, or decoded differently: it has no p-value here
                continue
            raise
        results.append(compare([first.shares[k] for k in keys], [other.shares[k] for k in keys]))
    return (corrected(results) if selected else results)[: len(files) - 1]


def table(set_name: str, summaries: list[dict[str, Any]], compared: list[Comparison], note: str) -> Table:
    n = summaries[0]["n"]
    ranked = tier_of(n, set_name).ranks_models
    made = Table(title=f"{set_name}: {n} problems, tier {tier_label(n, set_name)}{note}", title_justify="left")
    for head in ("model", "score", "95 % interval", "difference", "p", "cut off", "no answer"):
        made.add_column(head, justify="left" if head == "model" else "right")
    for number, summary in enumerate(summaries):
        s = summary["score"]
        difference = p = ""
        if number and ranked:
            c = compared[number - 1]
            difference, p = f"{c.difference * 100:+.1f} ({c.low * 100:+.1f} to {c.high * 100:+.1f})", f"{c.p_value:.2g}"
        elif number:
            difference = "not ranked"
        made.add_row(summary["name"], f"{s['mean']:.1%}", f"{s['low']:.1%} to {s['high']:.1%}", difference, p,
                     str(summary["truncated"]), str(summary["no_answer"]))  # fmt: skip
    return made


def selection_note(marked: bool, compared: list[Comparison]) -> str:
    """What a table's title says of selection; corrected is only what has something to be corrected for."""
    if not marked:
        return ""
    return ", SELECTED ON THIS SET" + (" (corrected p and intervals)" if any("Holm" in c.test for c in compared) else "")


def run_set(path: Path, jobs: list[Job], allowed: bool) -> None:
    """Evaluate a set with every model, write summaries, print the table.

    A mark stays: what was once picked from on this set is no untouched evaluation when it is made again.
    """
    folder, files, summaries = jobs[0].records.parent, [job.records for job in jobs], []
    for job in jobs:
        evaluate(job)
        summaries.append(summarise(job.served.name, job.records, path))
    earlier = others(folder, files)
    marked = (allowed and checkpoints([*summaries, *(read_json(header_path(other)) for other in earlier)]) > 1) or any(
        read_json(summary).get("selected_on_test") for summary in folder.glob("*.summary.json")
    )
    for job, summary in zip(jobs, summaries, strict=True):
        mark = {"selected_on_test": True} if marked else {}
        write_json_atomically(job.records.with_suffix(".summary.json"), {**summary, **mark})
    compared = compare_all(files, marked, earlier)
    console = Console()
    console.print(table(path.stem, summaries, compared, selection_note(marked, compared)))
    n = summaries[0]["n"]
    if not tier_of(n, path.stem).ranks_models:
        console.print(f"{n} problems only show whether a model works at all; models are not ranked by them.")
        return
    for summary, comparison in zip(summaries[1:], compared, strict=True):
        console.print(f"{summary['name']} (B) against {summaries[0]['name']} (A): {conclusion(comparison)}")


def prepare_all(args: argparse.Namespace) -> dict[Path, list[Job]]:
    """Everything that was asked for, found possible before the first engine starts."""
    served, sets = models(args), read_sets(args.eval_set, args.limit)
    decoding = Decoding.of(args.temperature, args.max_tokens, args.n_samples, args.reasoning_effort)
    jobs = {
        path: [
            prepare(one, problems, decoding, args.output / path.stem / f"{one.name}.jsonl", tp_size=args.tp, seed=args.seed)
            for one in served
        ]
        for path, problems in sets.items()
    }
    for path, made in jobs.items():
        earlier = others(args.output / path.stem, [job.records for job in made])
        check_selection(path.stem, [job.header for job in made], earlier, args.allow_selection_on_test)
    for unsure in dict.fromkeys(job.unsure for made in jobs.values() for job in made if job.unsure):
        print(f"eval_posthoc: warning: {unsure}", file=sys.stderr)
    return jobs


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_argument_group("what")
    what.add_argument("--model_path", type=Path, help="a model directory; with --adapter the adapters' base")
    what.add_argument("--model", action="append", default=[], metavar="NAME=DIR", help="a further model; may be repeated")
    what.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=DIR", help="a LoRA on --model_path; may be repeated"
    )
    what.add_argument("--with_base", action="store_true", help="with --adapter, evaluate --model_path itself first")
    what.add_argument("--eval_set", type=Path, nargs="+", required=True, help="JSON lines with input and label")
    what.add_argument("--limit", type=int, default=None, help="problems of each set; default: all")
    what.add_argument("--output", type=Path, default=Path("evals"), help="folder; default: evals")
    how = parser.add_argument_group("decoding")
    add_decoding(how, temperature=0.0, n_samples=1)
    parser.add_argument(
        "--allow-selection-on-test",
        "--allow_selection_on_test",
        action="store_true",
        help="compare checkpoints on the set they are reported on; the table says so",
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse_arguments()
    try:
        for path, jobs in prepare_all(args).items():
            run_set(path, jobs, args.allow_selection_on_test)
    except (EvaluationError, GateError, OSError) as error:
        sys.exit(f"eval_posthoc: {error}")
    except KeyboardInterrupt:
        sys.exit("eval_posthoc: interrupted; the same command goes on where it stopped")


if __name__ == "__main__":
    main()
