"""The policy inside DeepSpeed: gradients are measured before the optimizer step, and RoPE keeps its frequencies."""

import json
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from gptoss_rl.errors import GateError
from gptoss_rl.training.policy import checked_gradient_norm, token_log_probs

ROOT = Path(__file__).resolve().parent.parent


def engine_with_gradients(*values: float):
    module = torch.nn.Module()
    for index, value in enumerate(values):
        parameter = torch.nn.Parameter(torch.zeros(2))
        parameter.grad = torch.full((2,), value)
        module.register_parameter(f"p{index}", parameter)
    return types.SimpleNamespace(module=module, device="cpu")


def test_the_norm_is_that_of_all_gradients_together() -> None:
    assert checked_gradient_norm(engine_with_gradients(3.0, 4.0)) == pytest.approx((2 * 9 + 2 * 16) ** 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_stops_the_run(value: float) -> None:
    with pytest.raises(GateError, match="gate finite.*gradient of p1.*weights are\\s+untouched"):
        checked_gradient_norm(engine_with_gradients(1.0, value))


def test_a_matrix_that_no_loss_reaches_stops_the_run() -> None:
    engine = engine_with_gradients(1.0, 2.0)
    engine.module.p1.grad = None
    with pytest.raises(GateError, match=r"gate gradient\] 1 trainable matrices have no gradient, p1 among them"):
        checked_gradient_norm(engine)


def test_a_norm_that_overflows_float32_is_seen() -> None:
    # Every entry is finite, their squares are not.
    with pytest.raises(GateError, match="not finite"):
        checked_gradient_norm(engine_with_gradients(1e30))


def test_logprobs_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 7), torch.randint(0, 7, (10,))
    whole = token_log_probs(logits, labels, 1.0)
    monkeypatch.setattr("gptoss_rl.training.policy.LOGIT_ROWS", 3)
    chunked = token_log_probs(logits, labels, 1.0)
    assert torch.equal(whole[0], chunked[0])
    assert torch.equal(whole[1], chunked[1])


def test_no_response_token_gives_no_logprob() -> None:
    log_probs, entropy = token_log_probs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), 1.0)
    assert log_probs.shape == entropy.shape == (0,)


def test_zero3_in_bf16_rounds_ropes_frequencies_and_they_are_restored(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "tests" / "zero3_rotary.py", tmp_path / "model", str(port)]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    # Once DeepSpeed and transformers keep them, the first half fails, and restoring them can go.
    assert figures["before"]["frequency_error"] > 0.02
    assert figures["before"]["late"] > figures["before"]["early"] > 0.001
    assert figures["after"] == {"frequency_error": 0.0, "early": 0.0, "late": 0.0}
