"""Real DeepSpeed ZeRO-3 on one rank and on two: the optimizer is given the paper's gradient, whatever their number.

The planned step multiplies its loss by the number of ranks because DeepSpeed takes the mean over them
(gptoss_rl/training/actor_step.py). Nothing in a run could tell if that were wrong: clipping hides the size of a gradient.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from planned import GROUP, REWARDS, make_samples, paper_gradients, relative_error

from gptoss_rl.models.random_model import random_adapter
from gptoss_rl.training.train_plan import group_advantages

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-5
CLIP = 0.02  # a fifth of the gradient's norm
BETA = 0.9  # Adam's, of the first moment
# DeepSpeed 0.18.5 gathers parameters asynchronously, and over gloo with several ranks a launch now and then computes with
# a buffer that has not arrived: NaN, which gate `finite` stops. Such a launch is repeated; anything finite is judged.
LAUNCHES = 3


def launch(folder: Path, target: Path, ranks: int) -> list[str]:
    """Run all ranks to their end; what each of those that failed wrote to stderr, and its exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, "tests/deepspeed_ranks.py", str(folder), str(target), str(CLIP)]
    environments = [{**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    processes = [subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) for env in environments]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    return [f"{error}\nexit code {code}" for error, code in zip(errors, codes, strict=True) if code != 0]


@pytest.fixture(scope="module")
def wanted(gpt_oss_folder: Path) -> dict[str, torch.Tensor]:
    policy = random_adapter(gpt_oss_folder, rank=4).train()
    samples = make_samples(len(REWARDS), policy.config.vocab_size)
    return paper_gradients(policy, samples, group_advantages(REWARDS, GROUP))


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_optimizer_gets_the_papers_gradient_on_any_number_of_ranks(gpt_oss_folder, wanted, tmp_path, ranks: int) -> None:
    for _ in range(LAUNCHES):
        failures = launch(gpt_oss_folder, tmp_path / "out.pt", ranks)
        if not any("[gate finite]" in failure for failure in failures):
            break
    assert not failures, failures[0][-3000:]
    out = torch.load(tmp_path / "out.pt")
    norm = torch.cat([gradient.flatten() for gradient in wanted.values()]).norm().item()
    assert norm > 4 * CLIP, "the gradient must be large enough to be clipped"
    assert out["norm"] == pytest.approx(norm, rel=TOLERANCE)
    assert relative_error(out["gradients"], wanted) < TOLERANCE
    # After one step from zero the first moment is the clipped gradient, times 1 - beta. DeepSpeed adds the 1e-6.
    clipped = {name: (1 - BETA) * CLIP / (norm + 1e-6) * gradient for name, gradient in wanted.items()}
    assert relative_error(out["moments"], clipped) < TOLERANCE
