"""One engine and the trainer's model on one GPU at real size: start, memory, decoding, sync, and every fault by its figures.

The engine serves the MXFP4 checkpoint with its LoRA slot, as a run's engines do, in the memory of a 24 GB card; the trainer's
model is the BF16 twin in transformers with eager attention. Both score the same tokens, healthy and with one fault injected at
a time, so that the thresholds of the gates parity and canary can be read off: where healthy is, where the mildest fault.

    python make_random_gptoss.py /dev/shm/random-20b
    python benchmarks/gpu_engine.py --mxfp4 /dev/shm/random-20b-mxfp4 --bf16 /dev/shm/random-20b-bf16 --output gpu.json
    python benchmarks/gpu_engine.py --mxfp4 models/tiny-gptoss --bf16 models/tiny-gptoss --rank 8 --tokens 64      # on a CPU
"""

import argparse
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, GptOssForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from parity_by_position import rounded_frequencies  # noqa: E402

from gptoss_rl.models.random_model import LORA_TARGETS, set_random_B  # noqa: E402
from gptoss_rl.run.canary import shift_figures  # noqa: E402
from gptoss_rl.run_files import write_json_atomically  # noqa: E402
from gptoss_rl.sync.local_engine import engine_arguments, start_engine, start_ray  # noqa: E402
from gptoss_rl.sync.lora_sync import LoraSync  # noqa: E402
from gptoss_rl.training.parity import difference_statistics  # noqa: E402

SECTIONS = ("decode", "sync", "score", "gates")
SEED, OTHER_SEED = 20_250_801, 7
SHIFTS = (0.3, 1.0)  # nats, mean, by which the canary's noise should move the trainer's logprobs
LONGEST = 5120  # tokens, prompt and response of the 20B launchers
# What vLLM says of its start, by the name under which it is reported.
PHASES = {
    "weights_seconds": r"Loading weights took ([\d.]+) seconds",
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "compile_seconds": r"torch\.compile took ([\d.]+) s",
    "graphs_seconds": r"Graph capturing finished in ([\d.]+) secs",
    "kv_cache_tokens": r"KV cache size: ([\d,]+) tokens",
    "init_seconds": r"init engine .*? took ([\d.]+) s",
    "mxfp4_backend": r"Using (\w+) backend for mxfp4",
    "attention": r"Using AttentionBackendEnum\.(\w+)|Using (\w+) attention backend",
}


class Memory:
    """The most memory of the first GPU in use, of all processes, while the block runs; in GB. 0 without a GPU."""

    def __enter__(self) -> "Memory":
        self.peak, self._end = 0.0, threading.Event()
        self.before = self._used()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @staticmethod
    def _used() -> float:
        if not torch.cuda.is_available():
            return 0.0
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e9

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            self.peak = max(self.peak, self._used())


def said_by_the_engine() -> dict[str, Any]:
    """What the engine's log says of its start."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path()).glob("worker-*")
    text = "\n".join(path.read_text(errors="replace") for path in logs)
    found = {name: re.search(pattern, text) for name, pattern in PHASES.items()}
    return {name: next(group for group in match.groups() if group) for name, match in found.items() if match}


def start(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The engine, and what its start took."""
    from faulty_worker import ForgetfulEngine

    start_ray(devices=1, extra_path=ROOT / "tests")
    on_gpu = torch.cuda.is_available()
    flags = engine_arguments(
        lora_rank=args.rank, enforce_eager=not on_gpu, vllm_max_num_seqs=128, vllm_max_num_batched_tokens=4096,
        vllm_max_cudagraph_capture_size=128 if on_gpu else None,
    )  # fmt: skip
    share = args.gigabytes * 1e9 / torch.cuda.mem_get_info()[1] if on_gpu else None
    begun = time.perf_counter()
    with Memory() as memory:
        engine = start_engine(args.mxfp4, flags, max_model_len=min(LONGEST, args.longest), worker="faulty_worker.FaultyWorker",
                              actor_class=ForgetfulEngine, memory_utilization=share)  # fmt: skip
        ray.get(engine.current_policy_version.remote())
        seconds = time.perf_counter() - begun
    return engine, {"seconds": seconds, "gb": memory.peak - memory.before} | said_by_the_engine()


def trainer_model(args: argparse.Namespace) -> torch.nn.Module:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GptOssForCausalLM.from_pretrained(args.bf16, dtype=torch.bfloat16, attn_implementation="eager", device_map=device)
    config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=list(LORA_TARGETS))
    return get_peft_model(model, config).train()  # in eval mode, experts take another path


@torch.no_grad()
def trainer_scores(model: torch.nn.Module, sequences: list[list[int]], rows: int = 512) -> torch.Tensor:
    """Logprobs of every token but each sequence's first, (tokens,)."""
    inner, found = model.get_base_model(), []
    for tokens in sequences:
        ids = torch.tensor(tokens, device=inner.device)
        hidden = inner.model(ids[None], use_cache=False).last_hidden_state[0, :-1]
        for part, targets in zip(hidden.split(rows), ids[1:].split(rows), strict=True):
            found.append(torch.log_softmax(inner.lm_head(part).float(), -1).gather(1, targets[:, None])[:, 0].cpu())
    return torch.cat(found)


def engine_scores(engine: Any, sequences: list[list[int]]) -> torch.Tensor:
    return torch.cat([torch.tensor(scores) for scores in ray.get(engine.score.remote(sequences))])


def generate(engine: Any, prompts: list[list[int]], tokens: int, seed_of_all: int | None = None) -> list[list[int]]:
    """Responses of exactly `tokens` tokens, drawn at temperature 1, in the order of the prompts."""
    sampling = {"temperature": 1.0, "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "seed": seed_of_all}
    ray.get(engine.submit.remote({str(i): prompt for i, prompt in enumerate(prompts)}, sampling))
    found, left = {}, len(prompts)
    while left:
        finished, left = ray.get(engine.collect.remote(1.0))
        found |= {int(result["key"]): result["token_ids"] for result in finished}
    return [found[i] for i in range(len(prompts))]


def random_prompts(count: int, tokens: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(3, min(vocabulary, 199_000), (count, tokens), generator=generator).tolist()


def measure_decode(engine: Any, args: argparse.Namespace, vocabulary: int) -> dict[str, float]:
    """Tokens a second, with the adapter in use and without; the first, small call warms up."""
    found = {}
    for forgetful, name in ((True, "base"), (False, "adapter")):
        ray.get(engine.set_forgetful.remote(forgetful))
        generate(engine, random_prompts(8, 32, vocabulary), 16)
        for batch in args.batches:
            begun = time.perf_counter()
            generate(engine, random_prompts(batch, 128, vocabulary), args.tokens)
            found[f"{name}_{batch}x{args.tokens}"] = batch * args.tokens / (time.perf_counter() - begun)
    ray.get(engine.set_forgetful.remote(False))
    return found


def measure_score(engine: Any, args: argparse.Namespace, vocabulary: int) -> dict[str, float]:
    """Memory of the engine beyond what it holds anyway, while it scores prompts of growing number at full length."""
    found = {}
    for count in (1, 4, 16):
        with Memory() as memory:
            engine_scores(engine, random_prompts(count, min(LONGEST, args.longest) - 8, vocabulary))
        found[f"gb_beyond_{count}_sequences"] = memory.peak - memory.before
    return found


@contextmanager
def scaled(model: torch.nn.Module, factor: float, layer: int | None = None) -> Iterator[None]:
    """LoRA B times `factor`, of one layer or of all, while the block runs."""
    matrices = [
        p for name, p in model.named_parameters() if ".lora_B" in name and (layer is None or f"layers.{layer}." in name)
    ]
    assert matrices, layer
    kept = [p.data.clone() for p in matrices]
    for p in matrices:
        p.data *= factor
    try:
        yield
    finally:
        for p, old in zip(matrices, kept, strict=True):
            p.data.copy_(old)


@contextmanager
def without_sinks(model: torch.nn.Module) -> Iterator[None]:
    attentions = [layer.self_attn for layer in model.get_base_model().model.layers]
    kept = [attention.sinks.data.clone() for attention in attentions]
    for attention in attentions:
        attention.sinks.data.fill_(-1e4)
    try:
        yield
    finally:
        for attention, old in zip(attentions, kept, strict=True):
            attention.sinks.data.copy_(old)


@contextmanager
def wider_window(model: torch.nn.Module) -> Iterator[None]:
    """What an ordinary sliding mask computes: N + 1 tokens."""
    config = model.get_base_model().config
    config.sliding_window += 1
    try:
        yield
    finally:
        config.sliding_window -= 1


@contextmanager
def coarse_frequencies(model: torch.nn.Module) -> Iterator[None]:
    """RoPE as ZeRO-3 in bf16 makes it."""
    rotary = model.get_base_model().model.rotary_emb
    kept, rotary.inv_freq = rotary.inv_freq, rounded_frequencies(rotary)
    try:
        yield
    finally:
        rotary.inv_freq = kept


TRAINER_FAULTS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "trainer without sinks": without_sinks,
    "trainer's window one token wider": wider_window,
    "trainer's RoPE as ZeRO-3 in bf16 makes it": coarse_frequencies,
}


class Comparison:
    """Trainer and sampler on the same tokens, as the gates compare them."""

    def __init__(self, model: torch.nn.Module, engine: Any, args: argparse.Namespace, vocabulary: int):
        self.model, self.engine = model, engine
        set_random_B(model, seed=SEED, std=0.0)
        self.sync = LoraSync(model, [engine], mode="adapter", timeout=600)
        self.sync.sync()
        prompts = random_prompts(args.sequences, args.tokens // 2, vocabulary)
        responses = generate(engine, prompts, args.tokens // 2)
        self.sequences = [a + b for a, b in zip(prompts, responses, strict=True)]
        starts = [torch.arange(1, len(s)) for s in self.sequences]
        self.positions = torch.cat(starts)
        self.response = self.positions >= args.tokens // 2
        self.trainer_base, self.sampler_base = self.trainer(), self.sampler()

    def trainer(self) -> torch.Tensor:
        return trainer_scores(self.model, self.sequences)

    def sampler(self) -> torch.Tensor:
        return engine_scores(self.engine, self.sequences)

    def parity(self, trainer: torch.Tensor, sampler: torch.Tensor) -> dict[str, float]:
        difference = trainer - sampler
        figures = difference_statistics(difference[self.response], self.positions[self.response])
        return {"prompt": difference[~self.response].abs().mean().item()} | {
            name: figures[f"parity/{name}"] for name in ("abs_diff_mean", "abs_diff_p99", "kl")
        }

    def figures(self, trainer: torch.Tensor, sampler: torch.Tensor, trainer_base=None) -> dict[str, float]:
        base = self.trainer_base if trainer_base is None else trainer_base
        shifts = (trainer - base)[self.response], (sampler - self.sampler_base)[self.response]
        return shift_figures(*shifts) | self.parity(trainer, sampler)

    def noise_for(self, wanted: float) -> tuple[float, torch.Tensor]:
        """The standard deviation of LoRA B that moves the trainer's responses by about `wanted` nats, and its scores."""
        std, scores = 0.01, None
        for _ in range(12):
            set_random_B(self.model, seed=SEED, std=std)
            scores = self.trainer()
            shift = (scores - self.trainer_base)[self.response].abs().mean().item()
            if abs(shift / wanted - 1) < 0.1:
                break
            std *= min(4.0, max(0.25, wanted / max(shift, 1e-6))) ** 0.8
        return std, scores


def measure_gates(found: Comparison) -> dict[str, Any]:
    """Every fault's figures, at each size of the canary's noise."""
    model, engine, layers = found.model, found.engine, found.model.get_base_model().config.num_hidden_layers
    set_random_B(model, seed=SEED, std=0.0)
    table: dict[str, Any] = {"no adapter": {"healthy": found.parity(found.trainer_base, found.sampler_base)}}
    for name, fault in TRAINER_FAULTS.items():
        with fault(model):
            table["no adapter"][name] = found.parity(found.trainer(), found.sampler_base)
    for wanted in SHIFTS:
        std, trainer = found.noise_for(wanted)
        rows = table[f"noise for {wanted:g} nats"] = {"std": std}

        def synced(name: str, trainer=trainer, rows=rows) -> None:
            found.sync.sync()
            rows[name] = found.figures(trainer, found.sampler())

        synced("healthy")
        ray.get(engine.set_forgetful.remote(True))
        rows["adapter not used"] = found.figures(trainer, found.sampler())
        ray.get(engine.set_forgetful.remote(False))
        for name, fault in TRAINER_FAULTS.items():
            set_random_B(model, seed=SEED, std=0.0)
            with fault(model):
                base = found.trainer()
                set_random_B(model, seed=SEED, std=std)
                rows[name] = found.figures(found.trainer(), found.sampler(), base)
        for factor in (0.5, 0.8, 1.25, 1.5, -1.0):
            with scaled(model, factor):
                synced(f"adapter at {factor:g} of its scale")
        for layer in sorted({0, layers // 2, layers - 1}):
            with scaled(model, 0.0, layer):
                synced(f"layer {layer} of {layers} left out")
        set_random_B(model, seed=OTHER_SEED, std=std)
        synced("another adapter (stale)")
        set_random_B(model, seed=SEED, std=std)
    return table


def measure_sync(found: Comparison, repeats: int = 5) -> dict[str, float]:
    records = [found.sync.sync() for _ in range(repeats)]
    phases = {f"{phase}_seconds": statistics.median(r["seconds"][phase] for r in records) for phase in records[0]["seconds"]}
    return {"modules": records[0]["modules"], "mb": records[0]["nbytes"] / 1e6} | phases


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The result as Markdown."""
    for section in ("start", "decode", "score", "sync"):
        for name, value in result.get(section, {}).items():
            yield f"{section:8s} {name:28s} {value:.4g}" if isinstance(value, float) else f"{section:8s} {name:28s} {value}"
    for state, rows in result.get("gates", {}).items():
        keys = [key for row in rows.values() if isinstance(row, dict) for key in row]
        columns = list(dict.fromkeys(keys))
        yield f"\n| {state} | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns)
        for name, row in rows.items():
            if isinstance(row, dict):
                yield f"| {name} | " + " | ".join(f"{row[key]:.4g}" for key in columns) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mxfp4", type=Path, required=True, help="what the engine serves (on a CPU: the BF16 directory)")
    parser.add_argument("--bf16", type=Path, required=True, help="the trainer's directory, the same model")
    parser.add_argument("--gigabytes", type=float, default=24.7, help="of memory for the engine")
    parser.add_argument("--rank", type=int, default=32, help="of the adapter")
    parser.add_argument("--tokens", type=int, default=512, help="of a response when decoding; of a sequence when scoring")
    parser.add_argument("--sequences", type=int, default=8, help="that both score")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128], help="responses decoded at once")
    parser.add_argument("--longest", type=int, default=LONGEST, help="tokens of the longest sequence")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--output", type=Path, default=None, help="also write the figures as JSON, after each section")
    args = parser.parse_args()
    engine, started = start(args)
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none", "start": started}

    def keep(section: str, figures: dict[str, Any]) -> None:
        result[section] = figures
        print(f"{section} done after {time.perf_counter() - begun:.0f} s", flush=True)
        if args.output:
            write_json_atomically(args.output, result)

    begun = time.perf_counter()
    keep("start", started)
    vocabulary = AutoConfig.from_pretrained(args.bf16).vocab_size
    if "score" in args.only:  # before anything else has made the engine take memory
        keep("score", measure_score(engine, args, vocabulary))
    if {"sync", "gates", "decode"} & set(args.only):  # decoding uses the adapter that the trainer's model brings
        found = Comparison(trainer_model(args), engine, args, vocabulary)
        set_random_B(found.model, seed=SEED, std=0.01)
        for section, measure in (
            ("sync", lambda: measure_sync(found)),
            ("gates", lambda: measure_gates(found)),
            ("decode", lambda: measure_decode(engine, args, vocabulary)),
        ):
            if section in args.only:
                keep(section, measure())
    print("\n".join(lines(result)))
    ray.kill(engine)


if __name__ == "__main__":
    main()
