"""An evaluation from its preparation to the last record."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from tqdm import tqdm

from gptoss_rl.data.files import check_writable
from gptoss_rl.evaluation.records import check_header, header_path, identity
from gptoss_rl.evaluation.serving import PROMPT_MAX, AdapterFiles, Served, load_tokenizer, start
from gptoss_rl.evaluation.sets import Decoding, EvaluationError, Problem
from gptoss_rl.prompts import render_prompt
from gptoss_rl.records import Record, drawn_twice, make_record
from gptoss_rl.run_files import JsonLines, read_json_lines, write_json_atomically

COLLECT_SECONDS = 0.25  # how often finished responses are written: what a kill can cost


@dataclass(frozen=True)
class Job:
    """An evaluation that was found possible, as far as can be told without an engine."""

    served: Served
    problems: list[Problem]
    decoding: Decoding
    records: Path
    tp_size: int
    seed: int
    header: dict[str, Any]  # see `identity`
    prompts: dict[str, str]  # problem id -> rendered
    tokens: dict[str, list[int]]  # problem id -> token ids
    tokenizer: Any
    unsure: str | None  # what cannot be told of the adapter's base
    anew: bool = False  # throw away the records that are there


def prepare(
    served: Served, problems: list[Problem], decoding: Decoding, records: Path, *, tp_size: int, seed: int, anew: bool = False
) -> Job:
    """See that an evaluation can be made. Nothing is written.

    Args:
        anew: records that are there will be thrown away, so they may be of something else.

    Raises:
        EvaluationError: model, adapter or tokenizer cannot be used or do not fit together, a prompt is too long, the output
            cannot be written, or was begun with something else.
    """
    tokenizer = load_tokenizer(served.model)
    adapter = AdapterFiles(served.adapter, served.model) if served.adapter else None
    prompts = {problem.id: render_prompt(problem.text, decoding.reasoning_effort) for problem in problems}
    tokens = {key: tokenizer(prompt, add_special_tokens=False)["input_ids"] for key, prompt in prompts.items()}
    long = [key for key, ids in tokens.items() if len(ids) > PROMPT_MAX]
    if long:
        raise EvaluationError(f"{len(long)} prompts have more than {PROMPT_MAX} tokens, first {long[0]}")
    header = identity(served, problems, decoding, seed, tp_size)
    if not anew:
        check_header(records, header)
    try:
        check_writable(records.parent)
    except OSError as error:
        raise EvaluationError(f"nothing can be written to {records.parent}: {error.strerror}") from error
    unsure = adapter.unsure if adapter else None
    return Job(served, problems, decoding, records, tp_size, seed, header, prompts, tokens, tokenizer, unsure, anew)


@contextmanager
def only_writer(records: Path) -> Iterator[None]:
    """Hold the lock on a file of records, which is made when it is missing.

    Raises:
        EvaluationError: another command holds it; both would write every response.
    """
    records.parent.mkdir(parents=True, exist_ok=True)
    with records.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EvaluationError(f"{records} is being written by another command; wait for it, or choose --output") from error
        yield


def evaluate(job: Job) -> None:
    """Write a record for every problem and sample that the file of records does not hold yet.

    A killed evaluation leaves whole lines, and the next call makes the rest. Greedy responses do not depend on when that
    happens, up to the order of floating-point sums in a batch.

    Raises:
        EvaluationError: the records were begun with something else, hold a response twice, or are being written; or the engine
            failed.
    """
    with only_writer(job.records):
        if job.anew:
            job.records.write_bytes(b"")
        check_header(job.records, job.header)  # once more: another command may have begun meanwhile
        rows = list(read_json_lines(job.records))
        if twice := drawn_twice(rows):
            raise EvaluationError(
                f"{job.records} holds {len(twice)} responses twice, first one to problem {twice[0][0]}: it was "
                "written by two commands, or edited; move it away and evaluate again"
            )
        done = {(row["id"], row["sample"]) for row in rows}
        todo = {f"{p.id}/{k}": p for p in job.problems for k in range(job.decoding.n_samples) if (p.id, k) not in done}
        if todo:
            try:
                engine = start(job.served, job.decoding, job.tp_size, job.seed)
                try:
                    generate(job, engine, todo)
                finally:
                    ray.kill(engine)
            except RayError as error:
                raise EvaluationError(
                    f"the engine failed; what it wrote is kept, and the same command goes on\n{error}"
                ) from error


def generate(job: Job, engine: Any, todo: dict[str, Problem]) -> None:
    """Append a record for each of `todo`, by the key "problem id/sample", in the order in which they are finished."""
    requests = {key: job.tokens[problem.id] for key, problem in todo.items()}
    sampling = {"temperature": job.decoding.temperature, "top_p": job.decoding.top_p, "max_tokens": job.decoding.max_tokens}
    sampling |= {"min_tokens": 1, "skip_special_tokens": False}  # as in training
    ray.get(engine.submit.remote(requests, sampling))
    write_json_atomically(header_path(job.records), job.header)  # not before: an engine that does not start begins nothing
    file, left = JsonLines(job.records), len(requests)
    try:
        with tqdm(total=len(requests), desc=job.served.name, unit="response", disable=None) as bar:
            while left:
                finished, left = ray.get(engine.collect.remote(COLLECT_SECONDS))
                for result in finished:
                    problem, sample = todo[result["key"]], int(result["key"].split("/")[1])
                    file.write(record(problem, sample, job.prompts[problem.id], result, job.tokenizer))
                bar.update(len(finished))
    finally:
        file.file.close()


def record(problem: Problem, sample: int, prompt: str, result: dict[str, Any], tokenizer: Any) -> Record:
    """One line."""
    response = tokenizer.decode(result["token_ids"], skip_special_tokens=False)
    made = make_record(
        problem.id, prompt, response, problem.label, tokens=len(result["token_ids"]), finish_reason=result["finish_reason"]
    )
    return {"sample": sample, **made}
