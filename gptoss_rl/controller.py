"""The run as the controller process lives it: gates, clocks and files around upstream's training loop."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from gptoss_rl.canary import run_canary
from gptoss_rl.metrics import check_registered, rename_upstream
from gptoss_rl.mismatch import MismatchGuard
from gptoss_rl.planned_step import train_planned
from gptoss_rl.rollouts import (
    check_parity,
    check_policy_version,
    parity_statistics,
    rollout_statistics,
    sample_record,
)
from gptoss_rl.run_files import JsonLines, drop_after_step, write_json_atomically

SAMPLES_PER_STEP = 8  # one line each in samples.jsonl


class RunController:
    """Lives in OpenRLHF's `PPOTrainer`; the patches call one method at each point of the loop."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder = Path(args.run_dir)
        self.files = {name: JsonLines(self.folder / f"{name}.jsonl") for name in ("metrics", "samples", "sync", "eval")}
        self.policy_version = 0
        self.step = 0  # of the step now in progress
        self.pending: dict[str, float] = {}
        self.samples: list[dict[str, Any]] = []
        self.last_evaluated: int | None = None
        self.guard = MismatchGuard(args.max_mismatch_kl, args.mismatch_patience)
        self.must_stop, self.last_kl = False, 0.0
        self.clock = time.perf_counter()

    def start(self, trainer: Any, global_step: int) -> None:
        """Before the first step: sync, canary, parity. Raises GateError when the run must not start."""
        self.step = global_step
        if global_step:
            for file in self.files.values():
                drop_after_step(file.path, global_step)
            # The files were replaced, so the open handles point at the old ones.
            self.files = {name: JsonLines(file.path) for name, file in self.files.items()}
        trainer.broadcast_to_vllm()
        if self.args.canary_prompts > 0:
            write_json_atomically(self.folder / "canary.json", {"step": global_step, **run_canary(trainer, self.args)})
        self.clock = time.perf_counter()
        self.pending = {}

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to `time/<phase>`."""
        now = time.perf_counter()
        key = f"time/{phase}"
        self.pending[key] = self.pending.get(key, 0.0) + now - self.clock
        self.clock = now

    def record_sync(self, record: dict[str, Any]) -> None:
        self.policy_version = record["policy_version"]
        self.pending["sync/seconds"] = record["seconds"]["total"]
        if record["dead_zone_share"] is not None:
            self.pending["sync/dead_zone_share"] = record["dead_zone_share"]
        self.files["sync"].write({"step": self.step, "time": time.time(), **record})

    def check_rollout(self, samples: list[Any], tokenizer: Any) -> None:
        """Refuse samples of another policy; remember what the step's rollout looked like."""
        self.lap("generate")
        self.step += 1
        check_policy_version(samples, self.policy_version)
        self.pending |= rollout_statistics(samples, self.args.n_samples_per_prompt)
        chosen = samples[:: max(1, len(samples) // SAMPLES_PER_STEP)][:SAMPLES_PER_STEP]
        self.samples = [sample_record(sample, tokenizer, self.step) for sample in chosen]

    def check_experience(self, experiences: list[Any]) -> None:
        """Compare the trainer's old logprobs with the sampler's on the very tokens to be trained on."""
        statistics = parity_statistics(experiences)
        check_parity(statistics, self.args.parity_max_abs_diff, self.args.parity_max_kl, f"step {self.step}")
        self.pending |= statistics
        self.lap("experience")

    def train_planned(self, trainer: Any, samples: list[Any]) -> dict[str, Any]:
        """One global step under the constant normaliser: train, sync; returns its figures."""
        status = train_planned(trainer, samples, self.step)
        self.lap("train")
        # The actors' part before their first backward.
        self.pending["time/train"] -= status["time/experience"]
        trainer.broadcast_to_vllm()
        self.lap("sync")
        return {**status, "generated_samples": [self.samples[0]["response"], self.samples[0]["reward"]]}

    def finish_step(self, global_step: int, status: dict[str, Any]) -> dict[str, float]:
        """Write the step's line and samples; returns the metrics under their registered names."""
        metrics = {**rename_upstream(status), **self.pending}
        phases = ("generate", "experience", "train", "sync")
        metrics["time/step"] = sum(metrics.get(f"time/{phase}", 0.0) for phase in phases)
        for phase in ("checkpoint", "evaluate"):
            metrics.setdefault(f"time/{phase}", 0.0)
        check_registered(metrics)
        self.must_stop = self.guard.must_stop(metrics["parity/kl"])
        self.last_kl = metrics["parity/kl"]
        self.files["metrics"].write({"step": global_step, "time": time.time(), **metrics})
        for record in self.samples:
            self.files["samples"].write(record)
        self.pending = {}
        return metrics

    def stop_if_drifted(self, global_step: int) -> None:
        """Raises GateError when the sampler has drifted away from the trainer; called after the checkpoint."""
        if self.must_stop:
            raise self.guard.error(global_step, self.last_kl)

    @torch.no_grad()
    def evaluate(self, trainer: Any, global_step: int, **generate_kwargs: Any) -> dict[str, float]:
        """Evaluate the policy that the engines now serve, and keep every problem's record in eval.jsonl.

        Returns:
            `eval_<source>_pass1` and, with several samples, `eval_<source>_pass<k>`: the names that
            upstream's loggers use.
        """
        self.clock = time.perf_counter()
        group = generate_kwargs["n_samples_per_prompt"]
        samples = trainer.samples_generator.generate_eval_samples(**generate_kwargs)
        check_policy_version(samples, self.policy_version)
        for sample in samples:
            record = sample_record(sample, trainer.tokenizer, global_step)
            self.files["eval"].write({**record, "temperature": generate_kwargs["temperature"]})
        rewards_P_K = torch.cat([s.rewards for s in samples]).reshape(-1, group)
        logs = {"eval_pass1": rewards_P_K.mean().item(), "eval_problems": float(len(rewards_P_K))}
        if group > 1:
            logs[f"eval_pass{group}"] = rewards_P_K.max(dim=1).values.mean().item()
        self.last_evaluated = global_step
        self.lap("evaluate")
        return logs
