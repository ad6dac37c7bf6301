"""A run at one moment, as data: what the view draws and `--json` prints."""

import math
import time
from collections.abc import Sequence
from typing import Any

from gptoss_rl.metrics import PHASES
from gptoss_rl.watch.alerts import alerts
from gptoss_rl.watch.load import Gpu, host_load
from gptoss_rl.watch.run_view import RunView, problem_text

# Key, label, format; one row each, in this order. A short terminal loses the last ones first.
ROWS = (
    ("reward/mean", "reward", "{:.3f}"),
    ("policy/entropy", "entropy (nats)", "{:.4f}"),
    ("parity/kl", "KL to sampler", "{:.2e}"),
    ("optimizer/gradient_norm", "gradient norm", "{:.4g}"),
    ("rollout/response_tokens_mean", "response tokens", "{:.0f}"),
    ("rollout/truncated", "truncated", "{:.1%}"),
    ("reward/all_right", "groups all right", "{:.0%}"),
    ("reward/all_wrong", "groups all wrong", "{:.0%}"),
    ("policy/kl_to_base", "KL to base", "{:.4f}"),
    ("parity/abs_diff_mean", "mean |dlogp|", "{:.4f}"),
    ("parity/abs_diff_late", "  late positions", "{:.4f}"),
    ("ratio/log_ratio_p99", "p99 |log-ratio|", "{:.2e}"),
    ("ratio/clipped_low", "clipped low", "{:.2%}"),
    ("ratio/clipped_high", "clipped high", "{:.2%}"),
    ("sync/seconds", "sync (s)", "{:.3f}"),
)


def snapshot(view: RunView, gpus: Sequence[Gpu] | None = (), now: float | None = None) -> dict[str, Any]:
    """Everything that is shown; `gpus` as `GpuWatch.latest` tells."""
    now = time.time() if now is None else now
    steps, state, config = view.steps, view.state(now), view.config()
    total, pace = view.total_steps(), view.seconds_per_step()
    step, last = (steps[-1]["step"], steps[-1]) if steps else (0, {})
    running = state in ("running", "starting")
    return {
        "run": str(view.folder),
        "state": state,
        "step": step,
        "total_steps": total,
        "seconds_per_step": pace,
        "eta_seconds": (total - step) * pace if running and total and pace else None,
        "age_seconds": now - view.last_sign(),
        "metrics": {key: last[key] for key, _, _ in ROWS if key in last and not is_off(key, config)},
        "phases": {p: last.get(f"time/{p}", 0.0) for p in PHASES} if steps else {},
        "evaluation": evaluation_figures(view.refresh_evaluations()),
        "canary": view.canary() or None,
        "sync": sync_figures(view.syncs()),
        "host": host_load(),
        "gpus": None if gpus is None else list(gpus),
        "alerts": alerts(steps, state, config, view.failed_sync()),
        "messages": [*view.resumptions()[-1:], *view.strange_lines(), *view.messages()],
        "sample": sample_figures(view.last_sample()),
    }


def is_off(key: str, config: dict[str, Any]) -> bool:
    """The KL to the base is 0 without --init_kl_coef, whatever the policy does."""
    return key == "policy/kl_to_base" and config.get("init_kl_coef") == 0


def evaluation_figures(evaluations: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not evaluations:
        return None
    first = evaluations[0]
    return {**evaluations[-1], "first_step": first["step"], "first_pass_at_1": first["pass_at_1"]}


def sync_figures(syncs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last sync, and how many were proven."""
    if not syncs:
        return None
    return {"proven": len(syncs)} | {k: syncs[-1][k] for k in ("policy_version", "engines", "workers", "modules", "mode")}


def sample_figures(sample: dict[str, Any] | None) -> dict[str, Any] | None:
    return {**sample, "problem": problem_text(sample)} if sample else None


def without_infinities(value: Any) -> Any:
    """The same with None for what is not finite, which JSON (RFC 8259) has no word for."""
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
