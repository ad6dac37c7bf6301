"""Make a tiny gpt-oss that can be trained on a laptop, and the sums it is trained and evaluated on.

From nothing but this repository it makes `models/tiny-gptoss/` (a Hugging Face directory in BF16: attention
sinks, sliding and full attention, routed experts, YaRN, biases, Harmony tokens) and the prompt files
`data/tiny_train.jsonl` and `data/tiny_eval.jsonl`. A supervised warm-up leaves greedy pass@1 near 40 %: the
model knows two habits and prefers the worse one (gptoss_rl/models/tiny_task.py says which), because a model that
never succeeds gives reinforcement learning nothing to learn from. No evaluation problem, in either order of
its operands, is in the training file or in the warm-up; warm-up and training file are disjoint too.

It is cached: `manifest.json` in the model directory holds the arguments and the sha256 of the code that made
it and of every file; a second call with nothing changed returns without importing torch. A build happens in
a folder beside the model and is renamed at the end, so an interrupted one leaves the old state.

    python make_tiny_gptoss.py --seed 7 --output models/tiny-gptoss --data_dir data
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptoss_rl.models.tiny_task import WarmupError, split_problems
from gptoss_rl.run_files import write_json_atomically, write_text_atomically

ROOT = Path(__file__).resolve().parent
# What is made depends on these files and on the arguments, on nothing else in the repository.
GENERATING_CODE = (
    "make_tiny_gptoss.py",
    "gptoss_rl/prompts.py",
    "gptoss_rl/models/tiny_model.py",
    "gptoss_rl/models/tiny_task.py",
    "gptoss_rl/models/tiny_tokenizer.py",
)
MANIFEST = "manifest.json"
# Where a build is made has no influence on what is made.
NOT_IN_MANIFEST = ("output", "data_dir", "force", "threads")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides what a build makes: arguments and the code's sha256."""
    code = hashlib.sha256()
    for name in GENERATING_CODE:
        code.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    values = {name: value for name, value in vars(arguments).items() if name not in NOT_IN_MANIFEST}
    return {"arguments": values, "code_sha256": code.hexdigest()}


def is_current(output: Path, data_dir: Path, wanted: dict[str, Any]) -> bool:
    """Whether `output` and `data_dir` hold, byte for byte, what a build of `wanted` left there."""
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        if {name: manifest[name] for name in wanted} != wanted:
            return False
        files = {output / name: digest for name, digest in manifest["model_files"].items()}
        files |= {data_dir / name: digest for name, digest in manifest["data_files"].items()}
        return all(sha256_of(path) == digest for path, digest in files.items())
    except (OSError, ValueError, KeyError):  # missing or damaged: to be built again
        return False


def write_data(data_dir: Path, train_problems: int, eval_problems: int) -> dict[str, str]:
    """Write both prompt files.

    Returns:
        File name to sha256.
    """
    splits = split_problems()
    digests = {}
    for name, count in (("train", train_problems), ("eval", eval_problems)):
        path = data_dir / f"tiny_{name}.jsonl"
        rows = [item.row() for item in splits[name][:count]]
        write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        digests[path.name] = sha256_of(path)
    return digests


def write_model(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Build, warm up and save the model and its tokenizer in the empty directory `folder`.

    Returns:
        What the warm-up measured; empty without a warm-up.

    Raises:
        WarmupError: the warm-up ran out of steps.
    """
    # Imported here because they take seconds, and a call that finds everything made needs none of them.
    import torch

    from gptoss_rl.models import tiny_model
    from gptoss_rl.models.tiny_tokenizer import build_tokenizer

    torch.set_num_threads(arguments.threads)
    tokenizer = build_tokenizer(tiny_model.MAX_POSITIONS)
    names = tiny_model.Sizes.__dataclass_fields__
    sizes = tiny_model.Sizes(**{name: getattr(arguments, name) for name in names})
    model = tiny_model.build_model(sizes, tokenizer, arguments.seed)
    measured: dict[str, Any] = {}
    if arguments.max_warmup_steps:
        splits = split_problems()
        validation = splits["validation"][: arguments.validation_problems]
        measured = tiny_model.warm_up(
            model,
            tokenizer,
            warmup=splits["warmup"],
            validation=validation,
            seed=arguments.seed,
            max_steps=arguments.max_warmup_steps,
        )
    model.to(torch.bfloat16)
    if measured:
        measured["greedy_bf16"] = tiny_model.pass_at_1(model, tokenizer, validation)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return measured


def build(output: Path, data_dir: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make everything anew. The model directory, with the manifest in it, appears last and in one rename.

    Returns:
        The manifest.
    """
    from gptoss_rl.models.folder import leftovers, new_folder  # it imports torch

    for path in leftovers(output):  # interrupted builds'; the lock is held
        shutil.rmtree(path)
    with new_folder(output) as partial:
        manifest = recipe(arguments)
        manifest["measured"] = write_model(partial, arguments)
        manifest["data_files"] = write_data(data_dir, arguments.train_problems, arguments.eval_problems)
        manifest["model_files"] = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
        write_json_atomically(partial / MANIFEST, manifest)
    return manifest


@contextlib.contextmanager
def only_builder(output: Path) -> Iterator[None]:
    """Hold the lock beside `output`: a second build waits, and then finds the first one's result."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_name(f".{output.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    group = parser.add_argument_group("what and where")
    group.add_argument("--seed", type=int, default=42, help="seed of the weights and of the warm-up's order")
    group.add_argument("--output", type=Path, default=ROOT / "models/tiny-gptoss", help="model directory")
    group.add_argument("--data_dir", type=Path, default=ROOT / "data", help="folder of the prompt files")
    group.add_argument("--force", action="store_true", help="build even if everything is there and current")
    group.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="torch threads")
    group = parser.add_argument_group("problems")
    group.add_argument("--train_problems", type=int, default=1280, help="rows of tiny_train.jsonl")
    group.add_argument("--eval_problems", type=int, default=600, help="rows of tiny_eval.jsonl")
    group.add_argument("--validation_problems", type=int, default=256, help="problems that decide when to stop")
    group = parser.add_argument_group("warm-up")
    group.add_argument("--max_warmup_steps", type=int, default=800, help="steps; 0 = leave the model untrained")
    group = parser.add_argument_group("sizes")
    group.add_argument("--hidden_size", type=int, default=96, help="width of the residual stream")
    group.add_argument("--intermediate_size", type=int, default=128, help="width of an expert")
    group.add_argument("--layers", type=int, default=4, help="layers, sliding and full attention in turn")
    group.add_argument("--experts", type=int, default=4, help="experts of a layer")
    group.add_argument("--experts_per_token", type=int, default=2, help="experts that see a token")
    group.add_argument("--query_heads", type=int, default=6, help="query heads, a multiple of the next")
    group.add_argument("--key_value_heads", type=int, default=2, help="key and value heads")
    group.add_argument("--head_dim", type=int, default=32, help="width of a head")
    group.add_argument("--sliding_window", type=int, default=16, help="tokens a sliding layer looks back")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    output, data_dir = arguments.output.resolve(), arguments.data_dir.resolve()
    available = split_problems()
    for name in ("train", "eval", "validation"):
        asked = getattr(arguments, f"{name}_problems")
        if not 0 < asked <= len(available[name]):
            parser.error(f"--{name}_problems {asked}: there are {len(available[name])}, give 1 or more of them")
    with only_builder(output):
        if not arguments.force and is_current(output, data_dir, recipe(arguments)):
            print(f"{output.name} and its problems are there and current")
            return 0
        print(f"making {output.name} with seed {arguments.seed}")
        try:
            manifest = build(output, data_dir, arguments)
        except WarmupError as error:
            print(f"make_tiny_gptoss: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("make_tiny_gptoss: interrupted; nothing half-made was left behind", file=sys.stderr)
            return 130
    measured = manifest["measured"]
    if measured:
        print(
            f"warm-up stopped after {measured['steps']} steps: greedy pass@1 {measured['greedy_bf16']:.2f}, "
            f"and {measured['working']:.2f} when made to work, on {arguments.validation_problems} problems"
        )
    print(f"{arguments.train_problems} training and {arguments.eval_problems} evaluation problems written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
