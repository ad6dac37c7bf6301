"""Workers and engines that fail in one chosen way; importable in the processes that the tests start."""

import ray
from openrlhf.trainer.ray.vllm_engine import LLMRayActor
from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap

from gptoss_rl.sync.lora_payload import Manifest, unpack
from gptoss_rl.sync.vllm_worker import _serve_weight, _served_weight, _worker_shard


class FaultyWorker(WorkerWrap):
    policy_fault = ""
    policy_fault_rank = -1  # every rank

    def policy_set_fault(self, fault: str, rank: int = -1) -> None:
        self.policy_fault, self.policy_fault_rank = fault, rank

    def _faulty(self, fault: str) -> bool:
        return self.policy_fault == fault and self.policy_fault_rank in (-1, self.rank)

    def _policy_load_slot(self, manifest: Manifest, matrices) -> None:
        if self._faulty("drop"):
            return  # says it applied the adapter, and did not
        if self._faulty("stale"):
            # Applies what it received last time.
            manifest_json, payload = self._last_payload
            matrices = unpack(Manifest.from_json(manifest_json), bytearray(payload))
        if self._faulty("accumulate"):
            slots = self.model_runner.lora_manager._adapter_manager.modules.values()
            held = [[t.clone() for t in (*s.lora_a_stacked, *s.lora_b_stacked)] for s in slots]
            super()._policy_load_slot(manifest, matrices)
            for slot, old in zip(slots, held, strict=True):
                for tensor, before in zip((*slot.lora_a_stacked, *slot.lora_b_stacked), old, strict=True):
                    tensor.add_(before)
            return
        super()._policy_load_slot(manifest, matrices)

    def _policy_merge(self, manifest: Manifest, matrices) -> None:
        super()._policy_merge(manifest, matrices) if not self._faulty("accumulate") else self._merge_on_top(manifest, matrices)

    def _merge_on_top(self, manifest: Manifest, matrices) -> None:
        """The original's bug: add the delta to what is being served, not to the pristine weight."""
        self._policy_deltas = {}
        for projection in self._policy_projections():
            served, start = _served_weight(projection.layer), 0
            for path, rows in zip(projection.modules, projection.sizes, strict=True):
                a, b = _worker_shard(projection.layer, path, matrices[path, "A"], matrices[path, "B"])
                delta = self._policy_deltas[path] = manifest.scaling * (b.float() @ a.float())
                served[start : start + rows] += delta
                start += rows
            _serve_weight(projection.layer, served.to(projection.layer.pristine_weight.dtype))

    def policy_apply(self, manifest_json: str, payload: bytes):
        if self._faulty("skip"):
            # Received nothing: answers with what it was left with by the last sync.
            return self._last_answer
        answer = super().policy_apply(manifest_json, payload)
        self._last_answer, self._last_payload = answer, (manifest_json, bytes(payload))
        return answer


class _ForgetfulEngine(LLMRayActor.__ray_metadata__.modified_class):
    """An engine that can be told to leave the adapter out of its requests: everything is proven, nothing is used."""

    forgetful = False

    def set_forgetful(self, forgetful: bool) -> None:
        self.forgetful = forgetful

    def lora_request(self):
        return None if self.forgetful else super().lora_request()


ForgetfulEngine = ray.remote(_ForgetfulEngine)
