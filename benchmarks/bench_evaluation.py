"""Evaluations of the tiny model: seconds of generation as one batch and one request at a time, and random kills.

    python benchmarks/bench_evaluation.py                        # 1,000 problems
    python benchmarks/bench_evaluation.py --kills 10             # kill -9 at random moments; resumed against undisturbed

Generation is timed from the moment the requests are handed to the engine; starting it comes before and is shown apart.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
from transformers import AutoTokenizer

from gptoss_rl.evaluation import Decoding, Served, read_problems, start
from gptoss_rl.models.tiny_task import split_problems
from gptoss_rl.prompts import render_prompt
from gptoss_rl.run_files import read_json_lines

MODEL, EFFORT, MAX_TOKENS, ALONE = Path("models/tiny-gptoss"), "low", 48, 50


def write_set(path: Path, size: int) -> Path:
    """Sums, as many as asked for; a sum and its mirror image are different prompts."""
    sums = [item for items in split_problems().values() for item in items]
    rows = [item.row() for item in sums][:size]
    if len(rows) < size:
        sys.exit(f"there are only {len(rows)} sums")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generate(engine, requests: dict[str, list[int]]) -> tuple[float, int]:
    """Seconds and tokens of a batch."""
    sampling = {"temperature": 0.0, "top_p": 1.0, "max_tokens": MAX_TOKENS, "min_tokens": 1, "skip_special_tokens": False}
    begin, left, tokens = time.perf_counter(), len(requests), 0
    ray.get(engine.submit.remote(requests, sampling))
    while left:
        finished, left = ray.get(engine.collect.remote(0.5))
        tokens += sum(len(result["token_ids"]) for result in finished)
    return time.perf_counter() - begin, tokens


def throughput(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        problems = read_problems(write_set(Path(folder) / "set.jsonl", size))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    requests = {p.id: tokenizer(render_prompt(p.text, EFFORT), add_special_tokens=False)["input_ids"] for p in problems}
    begin = time.perf_counter()
    engine = start(Served("tiny", MODEL), Decoding.of(0.0, MAX_TOKENS, 1, EFFORT), 1, 0)
    generate(engine, dict(list(requests.items())[:2]))
    print(f"start of the engine and two requests      {time.perf_counter() - begin:8.1f} s")
    seconds, tokens = generate(engine, requests)
    print(f"{len(requests)} problems as one batch             {seconds:8.1f} s   {tokens / seconds:8.0f} tokens/s")
    alone = [generate(engine, {key: requests[key]}) for key in list(requests)[:ALONE]]
    each = sum(s for s, _ in alone) / ALONE
    print(f"one request at a time, {ALONE} problems       {each * ALONE:8.1f} s   {each * len(requests):8.0f} s for all")


def evaluation(eval_set: Path, output: Path) -> list[str]:
    words = [sys.executable, "eval_posthoc.py", "--model_path", MODEL, "--eval_set", eval_set, "--max_tokens", MAX_TOKENS,
             "--reasoning_effort", EFFORT, "--output", output]  # fmt: skip
    return [str(word) for word in words]


def kill_once(command: list[str], records: Path, at: float, patience: float) -> int:
    """Kill the process group `at` seconds after its first response stands there; returns the responses left whole."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        deadline, before = time.monotonic() + patience, records.stat().st_size if records.exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            if records.exists() and records.stat().st_size > before:
                time.sleep(at)
                break
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return len(list(read_json_lines(records))) if records.exists() else 0


def kills(size: int, number: int, seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        eval_set = write_set(work / "set.jsonl", size)
        done = subprocess.run(evaluation(eval_set, work / "whole"), capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        wanted = {row["id"]: row for row in read_json_lines(work / "whole/set/tiny-gptoss.jsonl")}
        for k in range(number):
            output = work / f"killed-{k}"
            records = output / "set/tiny-gptoss.jsonl"
            # Most are timed from the first response, so that they hit the generation; one in five hits the start.
            at, patience = (rng.uniform(0, 6), 600.0) if k % 5 else (0.0, rng.uniform(5, 60))
            left = kill_once(evaluation(eval_set, output), records, at, patience)
            resumed = subprocess.run(evaluation(eval_set, output), capture_output=True, text=True, check=False)
            if resumed.returncode:
                sys.exit(resumed.stderr[-2000:])
            got = {row["id"]: row for row in read_json_lines(records)}
            print(
                f"kill {k + 1}: {left} of {size} responses were written; resumed result identical: {got == wanted}", flush=True
            )
            if got != wanted:
                sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=0, help="instead, so many kills of such an evaluation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (MODEL / "config.json").is_file():
        sys.exit("make the tiny model first: python make_tiny_gptoss.py")
    if args.kills:
        kills(args.problems, args.kills, args.seed)
    else:
        throughput(args.problems)


if __name__ == "__main__":
    main()
