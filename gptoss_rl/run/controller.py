"""The run as the controller process lives it: gates, clocks and files around upstream's training loop."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from gptoss_rl.errors import GateError
from gptoss_rl.flags import ParityLimits
from gptoss_rl.metrics import PHASES, check_registered, rename_upstream
from gptoss_rl.run.canary import run_canary
from gptoss_rl.run.planned_step import train_planned
from gptoss_rl.run.rollouts import (
    check_policy_version,
    check_rollout_log_probs,
    rollout_statistics,
    sample_record,
)
from gptoss_rl.run_files import JsonLines, drop_after_step, read_json_lines, write_json_atomically
from gptoss_rl.training.mismatch import MismatchGuard
from gptoss_rl.training.parity import check_parity, parity_statistics

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
        self.limits = ParityLimits.of(vars(args))
        self.guard = MismatchGuard(self.limits)
        self.must_stop, self.last_kl = False, 0.0
        self.clock = time.perf_counter()

    def start(self, trainer: Any, global_step: int) -> None:
        """Before the first step: sync, canary, parity. Raises GateError when the run must not start."""
        self.step = global_step
        if global_step:
            self._take_up(trainer, global_step)
        trainer.broadcast_to_vllm()
        if self.args.canary_prompts > 0:
            figures = run_canary(trainer, self.args, self.limits)
            write_json_atomically(self.folder / "canary.json", {"step": global_step, **figures})
        self.clock = time.perf_counter()
        self.pending = {}

    def _take_up(self, trainer: Any, global_step: int) -> None:
        """Leave in the files what the checkpoint's run had written, and of its last evaluation the whole or nothing.

        The checkpoint is older than the evaluation of its step, so a run can be killed before or in it.
        """
        for file in self.files.values():
            drop_after_step(file.path, global_step)
        evaluated = self.files["eval"].path
        records = sum(record["step"] == global_step for record in read_json_lines(evaluated))
        if records and records == len(trainer.eval_dataloader or ()) * self.args.eval_n_samples_per_prompt:
            self.last_evaluated = global_step
        else:
            drop_after_step(evaluated, global_step - 1)
        # The files were replaced, so the open handles point at the old ones.
        self.files = {name: JsonLines(file.path) for name, file in self.files.items()}

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to `time/<phase>`."""
        now = time.perf_counter()
        key = f"time/{phase}"
        self.pending[key] = self.pending.get(key, 0.0) + now - self.clock
        self.clock = now

    def sync_policy(self, policy: Any) -> None:
        """Have the policy brought to every engine; the sync's line is in sync.jsonl before any error is raised.

        Args:
            policy: OpenRLHF's `RayActorGroup` of the trainer's ranks.
        """
        try:
            record = ray.get(policy.async_run_method(method_name="broadcast_to_vllm"))[0]
        except (GateError, RayError) as error:  # Ray's own when a part died: what the engines said is then not known
            unknown = {"policy_version": None, "mode": self.args.vllm_lora_sync, "modules": 0, "engines": 0, "workers": 0}
            known = getattr(error, "record", {"error": str(getattr(error, "cause", None) or error)})
            self._write_sync({**unknown, **known})
            raise
        self.policy_version = record["policy_version"]
        self.pending["sync/seconds"] = record["seconds"]["total"]
        if record["dead_zone_share"] is not None:
            self.pending["sync/dead_zone_share"] = record["dead_zone_share"]
        self._write_sync(record)

    def _write_sync(self, record: dict[str, Any]) -> None:
        self.files["sync"].write({"step": self.step, "time": time.time(), **record})

    def check_rollout(self, samples: list[Any], tokenizer: Any, rejected: Sequence[Any] = ()) -> None:
        """Refuse samples of another policy; remember what the step's rollout looked like.

        Args:
            rejected: whole groups that were drawn and will not be trained on (`--zero_variance refill`). They count in
                every figure: the groups that are left have right and wrong samples, whatever becomes of the policy.
        """
        self.lap("generate")
        self.step += 1
        drawn = [*samples, *rejected]
        check_policy_version(drawn, self.policy_version)
        check_rollout_log_probs(drawn)
        self.pending |= rollout_statistics(drawn, self.args.n_samples_per_prompt)
        chosen = samples[:: max(1, len(samples) // SAMPLES_PER_STEP)][:SAMPLES_PER_STEP]
        self.samples = [sample_record(sample, tokenizer, self.step) for sample in chosen]

    def check_experience(self, experiences: list[Any]) -> None:
        """Compare the trainer's old logprobs with the sampler's on the very tokens to be trained on."""
        statistics = parity_statistics(experiences)
        check_parity(statistics, self.limits.parity_max_abs_diff, self.limits.parity_max_kl, f"step {self.step}")
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
        metrics["time/step"] = sum(metrics.get(f"time/{phase}", 0.0) for phase in PHASES)
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
    def evaluate(self, trainer: Any, global_step: int) -> None:
        """Evaluate the policy that the engines now serve, and keep every problem's record in eval.jsonl.

        Upstream's loggers get `eval_pass1`, `eval_problems` and, with several samples, `eval_pass<k>`, from what eval.jsonl
        calls correct: a response that was cut off is wrong.
        """
        if trainer.eval_dataloader is None:
            return
        self.clock = time.perf_counter()
        group = self.args.eval_n_samples_per_prompt
        own = {"temperature": self.args.eval_temperature, "n_samples_per_prompt": group}
        samples = trainer.samples_generator.generate_eval_samples(**trainer.generate_kwargs | own)
        check_policy_version(samples, self.policy_version)
        records = [sample_record(sample, trainer.tokenizer, global_step) for sample in samples]
        for record in records:  # all were decoded and graded by now, so that a kill hardly finds the file half written
            self.files["eval"].write({**record, "temperature": self.args.eval_temperature})
        correct_P_K = torch.tensor([float(record["correct"]) for record in records]).reshape(-1, group)
        logs = {"eval_pass1": correct_P_K.mean().item(), "eval_problems": float(len(correct_P_K))}
        if group > 1:
            logs[f"eval_pass{group}"] = correct_P_K.max(dim=1).values.mean().item()
        for tracker in (trainer.wandb_logger, trainer.tensorboard_logger):
            if tracker is not None:
                tracker.log_eval(global_step, logs)
        print(f"evaluation at step {global_step}: {logs}")
        self.last_evaluated = global_step
        self.lap("evaluate")
