"""The trainer's side of weight sync: gather the adapter once, send it through Ray, believe only proofs.

One sync: (1) every rank takes part in gathering the adapter, which ZeRO-3 makes a collective; rank 0 goes on alone.
(2) Rank 0 rounds it to bf16, packs it into one tensor with a manifest (version, names, shapes, sha256) and puts it into
Ray's object store once. (3) Every engine refuses it while a request is in flight, else hands it to its workers, empties its
prefix cache, and answers with a proof of each worker: digests of what it now serves, or in merge mode norms of what it
merged. (4) Rank 0 compares all proofs with what it expects; anything missing or different is a SyncError.
"""

import time
from collections.abc import Sequence
from typing import Any

import deepspeed
import ray
import torch
import torch.distributed as dist

from gptoss_rl.errors import GateError, SyncError
from gptoss_rl.sync.lora_payload import (
    HeadLayout,
    Manifest,
    delta_norm,
    expected_digests,
    pack,
    shard,
    split_peft_name,
)

# Relative difference of two float32 norms of the same r-rank product, computed by different routes.
NORM_TOLERANCE = 1e-3
Matrices = dict[tuple[str, str], torch.Tensor]  # (module path, "A" | "B") -> matrix
# Upstream starts every engine in bfloat16 (vllm_engine.py), so the adapter is rounded to it before it is sent;
# what the digests prove is that the engines hold these rounded values.
ENGINE_DTYPE = torch.bfloat16
CAUSES = (
    "Likely causes: the patched OpenRLHF or vLLM was changed, a worker restarted, or the adapter's rank, "
    "alpha or target modules differ between trainer and engine."
)


def lora_parameters(model: torch.nn.Module) -> dict[tuple[str, str], torch.nn.Parameter]:
    """(module path, "A" | "B") -> parameter, for every LoRA matrix of a PEFT model.

    Raises:
        GateError: the model has none.
    """
    found = {split_peft_name(name): p for name, p in model.named_parameters() if ".lora_" in name}
    if not found:
        raise GateError("sync", "the policy has no LoRA parameters; start it with --lora_rank above 0")
    return found


def lora_scaling(model: torch.nn.Module) -> float:
    """The one factor that PEFT multiplies B A with.

    Raises:
        GateError: layers disagree (rank or alpha patterns are not supported by the sync).
    """
    factors = {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}
    if len(factors) != 1:
        raise GateError("sync", f"LoRA layers have different scalings {sorted(factors)}; use one rank and one alpha")
    return factors.pop()


def check_finite_lora(matrices: Matrices) -> None:
    """Raises GateError naming the first LoRA matrix that is not finite: it must never reach a sampler."""
    for (module, matrix), tensor in matrices.items():
        if not torch.isfinite(tensor).all():
            raise GateError(
                "finite",
                f"lora_{matrix} of {module} holds NaN or infinity before the sync; the engines keep the last "
                "good policy. Likely causes: a NaN reward or advantage, or a learning rate that diverged.",
            )


def counts(replies: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Who answered."""
    return {"engines": len(replies), "workers": sum(len(reply["answers"]) for reply in replies)}


class Stopwatch:
    """How long the parts of a sync took, and all of them in `total`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds |= {part: now - self._last, "total": now - self._start}
        self._last = now


class LoraSync:
    """Brings the policy's adapter to every worker of every engine, and raises unless all of them prove it."""

    def __init__(self, model: torch.nn.Module, engines: Sequence[Any], *, mode: str, timeout: float, first_version=0):
        config = model.config
        self.model = model
        self.engines = list(engines)
        self.mode = mode
        self.timeout = timeout
        self.version = first_version
        self.parameters = lora_parameters(model)
        self.scaling = lora_scaling(model)
        self.layout = HeadLayout(config.head_dim, config.num_attention_heads, config.num_key_value_heads)

    def gather(self) -> Matrices:
        """All LoRA matrices, on the CPU of rank 0; an empty dict elsewhere. Collective."""
        parameters = list(self.parameters.values())
        partitioned = any(hasattr(p, "ds_id") for p in parameters)
        with deepspeed.zero.GatheredParameters(parameters, enabled=partitioned):
            if dist.is_initialized() and dist.get_rank() != 0:
                return {}
            return {key: p.detach().to("cpu", ENGINE_DTYPE, copy=True) for key, p in self.parameters.items()}

    def sync(self) -> dict[str, Any] | None:
        """Sync once. Collective; returns the record for sync.jsonl on rank 0 and None elsewhere.

        Raises:
            GateError: a LoRA matrix is not finite.
            SyncError: an engine did not answer, or a worker's answer is not the expected one. Its `record` holds what is
                known of the sync: the answers, how long each part took, and the verdict.
        """
        watch = Stopwatch()
        matrices = self.gather()
        self.version += 1
        if not matrices:
            return None
        watch.lap("gather")
        check_finite_lora(matrices)
        rank = next(t.shape[0] for (_, matrix), t in matrices.items() if matrix == "A")
        manifest, buffer = pack(matrices, version=self.version, rank=rank, scaling=self.scaling)
        watch.lap("pack")
        record: dict[str, Any] = {
            "policy_version": self.version,
            "mode": self.mode,
            "sha256": manifest.sha256,
            "nbytes": manifest.nbytes,
            "modules": len(manifest.modules()),
        }
        try:
            replies = self._prove(manifest, matrices, buffer, watch)
        except SyncError as error:
            answered = error.record["replies"]
            error.record = {**record, **counts(answered), "seconds": watch.seconds, "error": str(error), "replies": answered}
            raise
        workers = [answer for reply in replies for answer in reply["answers"]]
        seconds = {**watch.seconds, "worker_apply": max(w["seconds"]["apply"] for w in workers)}
        return {**record, **counts(replies), "seconds": seconds, "dead_zone_share": self.dead_zone_share(workers)}

    def _prove(self, manifest: Manifest, matrices: Matrices, buffer: torch.Tensor, watch: "Stopwatch") -> list[dict[str, Any]]:
        """Deliver and judge. A SyncError carries the replies that there were."""
        payload = ray.put(buffer.numpy())
        watch.lap("put")
        try:
            replies = self.deliver(manifest, payload)
        finally:
            watch.lap("deliver")
        try:
            self.judge(manifest, matrices, replies)
        except SyncError as error:
            error.record = {"replies": replies}
            raise
        finally:
            watch.lap("judge")
        return replies

    def deliver(self, manifest: Manifest, payload: ray.ObjectRef) -> list[dict[str, Any]]:
        """One call an engine; Ray hands the same shared-memory buffer to each."""
        refs = [engine.sync_policy.remote(manifest.to_json(), payload) for engine in self.engines]
        done, late = ray.wait(refs, num_returns=len(refs), timeout=self.timeout)
        if late:
            silent = ", ".join(str(i) for i, ref in enumerate(refs) if ref in late)
            raise SyncError(
                f"engine {silent} did not answer within {self.timeout:g} s for policy version {manifest.version} "
                f"({len(done)} of {len(refs)} engines did). Look for its traceback above, or raise --vllm_sync_timeout.",
                replies=ray.get(done),
            )
        return ray.get(refs)

    def judge(self, manifest: Manifest, matrices: Matrices, replies: list[dict[str, Any]]) -> None:
        """Raises SyncError unless every worker of every engine serves exactly what was sent.

        What each worker must hold is computed here from `matrices` and the model's own scaling, not from
        the manifest that was delivered.
        """
        if len(replies) != len(self.engines):
            raise SyncError(f"{len(replies)} engines answered, {len(self.engines)} were asked. {CAUSES}")
        modules = sorted({module for module, _ in matrices})
        expected: dict[tuple[int, int], dict[str, str]] = {}
        for index, reply in enumerate(replies):
            if reply["in_flight"]:
                raise SyncError(f"engine {index} still had {reply['in_flight']} requests in flight; nothing was applied")
            answers = reply["answers"]
            tp_size = answers[0]["tp_size"] if answers else 0
            if sorted(a["tp_rank"] for a in answers) != list(range(tp_size)) or not answers:
                ranks = [a["tp_rank"] for a in answers]
                raise SyncError(f"engine {index}: answers from TP ranks {ranks}, expected each of {tp_size} once. {CAUSES}")
            for answer in answers:
                where = f"engine {index}, worker of TP rank {answer['tp_rank']}"
                self.judge_header(manifest, answer, where)
                if difference := set(modules) ^ set(answer["modules"]):
                    raise SyncError(f"{where}: modules missing or extra: {', '.join(sorted(difference)[:4])}. {CAUSES}")
                if self.mode == "merge":
                    self.judge_norms(matrices, modules, answer, where)
                    continue
                key = (answer["tp_rank"], tp_size)
                if key not in expected:
                    expected[key] = expected_digests(matrices, modules, self.layout, self.scaling, *key)
                for module in modules:
                    if answer["modules"][module] != expected[key][module]:
                        raise SyncError(
                            f"{where}: module {module} serves {answer['modules'][module]}, expected "
                            f"{expected[key][module]} for policy version {manifest.version}. {CAUSES}"
                        )
            if not reply["cache_reset"]:
                raise SyncError(
                    f"engine {index}: vLLM did not reset its prefix cache for policy version {manifest.version} (it returned "
                    "False): blocks are still in use, and prompts could be continued from keys and values of an older "
                    "policy. Likely cause: a request that was not waited for, or one that was aborted and never freed."
                )

    @staticmethod
    def judge_header(manifest: Manifest, answer: dict[str, Any], where: str) -> None:
        if answer["error"]:
            raise SyncError(f"{where}: {answer['error']}. {CAUSES}")
        if answer["version"] != manifest.version:
            raise SyncError(f"{where}: serves policy version {answer['version']}, expected {manifest.version}. {CAUSES}")
        if answer["payload_sha256"] != manifest.sha256:
            raise SyncError(f"{where}: received bytes with SHA-256 {answer['payload_sha256']}, sent {manifest.sha256}.")

    def judge_norms(self, matrices, modules: list[str], answer: dict[str, Any], where: str) -> None:
        for module in modules:
            a, b = shard(matrices, module, self.layout, answer["tp_rank"], answer["tp_size"])
            expected, (got, _, wrong) = delta_norm(a, b, self.scaling), answer["modules"][module]
            if abs(got - expected) > NORM_TOLERANCE * max(expected, 1e-12):
                raise SyncError(f"{where}: module {module} merged a delta of norm {got:.6g}, expected {expected:.6g}. {CAUSES}")
            if wrong:
                raise SyncError(
                    f"{where}: module {module} serves {wrong:.0f} weights that are not the pristine weight plus this delta: "
                    "an earlier delta was not removed, or the new one was not served."
                )

    def dead_zone_share(self, workers: list[dict[str, Any]]) -> float | None:
        """Share of the update that bf16 rounding swallowed in merge mode; None in adapter mode."""
        if self.mode != "merge":
            return None
        entries = [entry for worker in workers for entry in worker["modules"].values()]
        exact = sum(delta**2 for delta, _, _ in entries)
        return (sum(lost**2 for _, lost, _ in entries) / exact) ** 0.5 if exact else 0.0
