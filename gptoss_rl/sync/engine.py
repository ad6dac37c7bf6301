"""The rollout engine's side of weight sync, mixed into OpenRLHF's `LLMRayActor`, and the options of vLLM.

An engine knows which policy version it serves, says so on every response, and can score given tokens so
that trainer and sampler can be compared on equal terms.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from gptoss_rl.sync.last_error import FirstCauseError, described

# Largest adapter of which vLLM 0.20.2 has kernels (vllm/config/lora.py, MaxLoRARanks).
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
SYNC_WORKER = "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"
# vLLM drops no block that a request holds. One that was aborted is gone here before the engine's process hears of it, so
# a refusal may pass; one that lasts does not.
CACHE_RESET_SECONDS = 5.0
# Tokens of a prompt that one forward pass takes, at most. vLLM makes float32 logits of all of them when it scores a prompt,
# and as many again: 8.2 GB for 4,096 tokens of gpt-oss's 201,088 words, which its memory profile does not count.
PROMPT_CHUNK = 512
LOOK_SECONDS = 0.5  # between two looks at whether vLLM's processes are there


def slot_rank(lora_rank: int) -> int:
    """Smallest LoRA slot of vLLM that holds an adapter of this rank.

    Raises:
        ValueError: vLLM has no slot that large.
    """
    for rank in VLLM_LORA_RANKS:
        if lora_rank <= rank:
            return rank
    raise ValueError(f"--lora_rank {lora_rank} is larger than vLLM's largest slot ({VLLM_LORA_RANKS[-1]})")


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """vLLM engine arguments that the launch flags ask for; only what differs from vLLM's own defaults."""
    options: dict[str, Any] = {
        # The logprob of the sampled token after temperature, which is what the trainer computes.
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": 1,
        "long_prefill_token_threshold": PROMPT_CHUNK,
        "additional_config": {},
        "reward_timeout": args.reward_timeout,
    }
    if args.vllm_lora_sync == "adapter":
        options |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_cpu_loras": 1,
            "max_lora_rank": slot_rank(args.lora_rank),
        }
    else:
        options["additional_config"] = {"gptoss_rl_merge": True}
    for flag in ("max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype", "max_cudagraph_capture_size"):
        value = getattr(args, f"vllm_{flag}")
        if value is not None:
            options[flag] = value
    if args.vllm_executor_backend is not None:
        options["distributed_executor_backend"] = args.vllm_executor_backend
    elif args.num_devices is not None and args.vllm_tensor_parallel_size > 1:
        options["distributed_executor_backend"] = "mp"  # OpenRLHF asks for Ray's, which vLLM does not have on a CPU
    return options


class PolicyEngine:
    """Mixin of the engine actor. `self.llm` is vLLM's AsyncLLM, made by the class it is mixed into."""

    policy_version = 0  # 0: the bare base model; the first sync makes it 1
    _lora_request = None

    async def sync_policy(self, manifest_json: str, payload: np.ndarray) -> dict[str, Any]:
        """Pass one adapter on to every worker and collect what each of them now serves.

        Args:
            payload: uint8, (nbytes,); Ray has already resolved the object reference, because a reference
                does not survive `collective_rpc`.

        Returns:
            answers (one dict a worker, see `PolicySyncWorker.policy_apply`), in_flight (requests that
            should not have been there), cache_reset (whether what older policies computed is forgotten), seconds.
        """
        from vllm.lora.request import LoRARequest

        from gptoss_rl.sync.lora_payload import Manifest

        start = time.perf_counter()
        in_flight = self.get_num_unfinished_requests()
        if in_flight:
            return {"answers": [], "in_flight": in_flight, "cache_reset": False, "seconds": 0.0}
        answers = await self.call_workers("policy_apply", manifest_json, payload.tobytes())
        # The prefix-cache key knows an adapter by name only, and a merged one not at all; a fresh cache needs no such trust.
        cache_reset = await self._reset_prefix_cache()
        manifest = Manifest.from_json(manifest_json)
        if cache_reset and all(answer["error"] is None and answer["version"] == manifest.version for answer in answers):
            self.policy_version = manifest.version
            merged = self.kwargs["additional_config"].get("gptoss_rl_merge")
            # The id is the version: a worker that missed a sync does not know the id, and fails loudly
            # instead of sampling from an older adapter.
            self._lora_request = (
                None
                if merged
                else LoRARequest(
                    lora_name=f"policy-{manifest.version}",
                    lora_int_id=manifest.version,
                    lora_path=f"/in-memory/policy-{manifest.version}",
                )
            )
        return {"answers": answers, "in_flight": 0, "cache_reset": cache_reset, "seconds": time.perf_counter() - start}

    @contextlib.contextmanager
    def first_cause(self) -> Iterator[None]:
        """Raises FirstCauseError with the error, often another process's, that kept vLLM from starting."""
        try:
            yield
        except Exception as error:  # of any kind; it is raised again in other words
            raise FirstCauseError(described(error)) from error

    async def outlive(self) -> None:
        """Never returns. Raises FirstCauseError when vLLM's processes have died, whoever asks and whatever else is going on."""
        while not self.llm.errored:
            await asyncio.sleep(LOOK_SECONDS)
        raise FirstCauseError(described(self.llm.dead_error))

    async def _reset_prefix_cache(self) -> bool:
        """Forget every cached block; False when vLLM still refuses after `CACHE_RESET_SECONDS`."""
        deadline = time.perf_counter() + CACHE_RESET_SECONDS
        while not await self.llm.reset_prefix_cache():
            if time.perf_counter() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    def current_policy_version(self) -> int:
        """The version that the next response will be stamped with."""
        return self.policy_version

    async def call_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the worker extension on every worker of this engine."""
        return await self.llm.collective_rpc(method, args=args)

    def lora_request(self):
        """What every generate call must pass on for the adapter to be used at all; None in merge mode."""
        return self._lora_request

    def stamp(self, responses: list[dict[str, Any]], version_before: int) -> list[dict[str, Any]]:
        """Write the policy version on each response.

        Raises:
            RuntimeError: the policy changed while they were being generated.
        """
        if self.policy_version != version_before:
            raise RuntimeError(f"the policy changed from version {version_before} to {self.policy_version} during generation")
        for response in responses:
            response["policy_version"] = self.policy_version
        return responses

    async def score(self, sequences: list[list[int]], temperature: float = 1.0) -> list[list[float]]:
        """Log-probability of each token given the ones before it, under the policy now served.

        Returns:
            One list per sequence, one entry shorter than it (nothing precedes the first token).
        """
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.utils import random_uuid

        # prompt_logprobs are computed from raw logits, so temperature is not theirs to apply.
        if temperature != 1.0:
            raise ValueError(f"vLLM scores prompts at temperature 1 only, not {temperature}")
        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0)

        async def one(tokens: list[int]) -> list[float]:
            final = None
            async for output in self.llm.generate(
                TokensPrompt(prompt_token_ids=tokens),
                params,
                request_id=random_uuid(),
                lora_request=self.lora_request(),
            ):
                final = output
            return [entry[token].logprob for token, entry in zip(tokens[1:], final.prompt_logprobs[1:], strict=True)]

        return await asyncio.gather(*(one(tokens) for tokens in sequences))

    async def submit(self, requests: dict[str, list[int]], sampling: dict[str, Any]) -> None:
        """Put token-id prompts into the engine's batch, all at once; `collect` hands over what has finished.

        Args:
            requests: key -> prompt.
            sampling: arguments of vLLM's SamplingParams, the same for all.
        """
        from vllm import SamplingParams

        async def one(key: str, tokens: list[int]) -> dict[str, Any]:
            output = (await self.generate(tokens, SamplingParams(**sampling))).outputs[0]
            return {"key": key, "token_ids": list(output.token_ids), "finish_reason": output.finish_reason}

        self._running = {asyncio.create_task(one(key, tokens)) for key, tokens in requests.items()}

    async def collect(self, seconds: float) -> tuple[list[dict[str, Any]], int]:
        """What has finished within the next `seconds` (at least one, if any is left), and how many are still running."""
        if not self._running:
            return [], 0
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        if self._running:
            more, self._running = await asyncio.wait(self._running, timeout=seconds)
            done |= more
        return [task.result() for task in done], len(self._running)

    async def greedy(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedy responses (token ids) to token-id prompts, under the policy now served."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        outputs = await asyncio.gather(*(self.generate(tokens, params) for tokens in prompts))
        return [list(output.outputs[0].token_ids) for output in outputs]
