"""A worker that also receives an adapter tensor by tensor, for comparison in bench_lora_sync.py."""

import torch
from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap


class PerTensorWorker(WorkerWrap):
    def receive_tensor(self, name: str, data: bytes) -> None:
        if not hasattr(self, "received"):
            self.received = {}
        self.received[name] = torch.frombuffer(bytearray(data), dtype=torch.bfloat16)
