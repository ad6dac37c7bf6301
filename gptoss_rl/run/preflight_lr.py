"""The learning rate that a run would really use, step by step, before the run is started.

Reads the very flags of a launcher, builds the schedule with the call that training uses, and exits non-zero
when the run would not train as its flags suggest. Called by preflight_lr.sh.
"""

import argparse
import sys
from pathlib import Path

import torch

from gptoss_rl.errors import GateError
from gptoss_rl.run.flag_rules import read_flags, schedule_problems
from gptoss_rl.run.launch_gates import check_length, missing_data, read_prompts
from gptoss_rl.training.schedule import build_scheduler, run_length

PLOT_WIDTH, PLOT_HEIGHT = 64, 8


def learning_rates(args: argparse.Namespace, optimizer_steps: int) -> list[float]:
    """Rate used by each optimizer step, from the scheduler that training builds."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.actor_learning_rate)
    scheduler = build_scheduler(args, optimizer, optimizer_steps)
    rates = []
    for _ in range(optimizer_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def plot(rates: list[float]) -> str:
    """The schedule as a few lines of text."""
    peak = max(rates) or 1.0
    columns = [rates[min(i * len(rates) // PLOT_WIDTH, len(rates) - 1)] / peak for i in range(PLOT_WIDTH)]
    rows = []
    for level in range(PLOT_HEIGHT, 0, -1):
        label = f"{peak * level / PLOT_HEIGHT:9.2e} |"
        rows.append(label + "".join("#" if c * PLOT_HEIGHT >= level - 0.5 else " " for c in columns))
    rows.append(" " * 10 + "+" + "-" * PLOT_WIDTH)
    return "\n".join(rows)


def table(args: argparse.Namespace, rates: list[float], updates: int) -> str:
    """The rate at chosen steps; a global step is one rollout batch, of `updates` optimizer steps."""
    last = len(rates) - 1
    chosen = sorted({0, 1, last // 10, last // 4, last // 2, 3 * last // 4, last, rates.index(max(rates))})
    lines = ["optimizer step  global step  learning rate"]
    lines += [f"{step + 1:14d}  {step // updates + 1:11d}  {rates[step]:.3e}" for step in chosen if step <= last]
    return "\n".join(lines)


def report(args: argparse.Namespace, num_prompts: int) -> str:
    """Table and plot of a run over `num_prompts` prompts.

    Raises:
        GateError: batch sizes do not divide, the scheduler cannot be used, the run is too short, warm-up is too long, or the
            peak is missed.
    """
    problems = schedule_problems(args)
    if problems:
        raise GateError("flags", "; ".join(problems))
    length = run_length(args, num_prompts)
    rates = learning_rates(args, length.optimizer_steps) or [0.0]
    if length.optimizer_steps and max(rates) < args.actor_learning_rate * (1 - 1e-6):
        raise GateError(
            "flags",
            f"the learning rate never reaches its peak of {args.actor_learning_rate:g}: the highest is {max(rates):.3g}; "
            "lengthen the run or lower --lr_warmup_ratio",
        )
    check_length(args, num_prompts)
    updates = length.optimizer_steps // length.global_steps
    dropped = f", {length.dropped_prompts} prompts left over each episode" if length.dropped_prompts else ""
    head = (
        f"{num_prompts} prompts{dropped}: {length.global_steps} global steps x {updates} = {length.optimizer_steps} optimizer "
        f"steps, {args.lr_scheduler}, peak {args.actor_learning_rate:g}"
    )
    return "\n".join([head, table(args, rates, updates), plot(rates)])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], add_help=False)
    parser.add_argument("--num_prompts", type=int, help="take this many prompts instead of reading --prompt_data")
    own, flags = parser.parse_known_args(argv)
    try:
        args = read_flags(flags)
        count = own.num_prompts
        if count is not None and count < 1:
            raise GateError("flags", f"--num_prompts {count} must be at least 1")
        if count is None:
            missing = missing_data(args, ["prompt_data"])
            if missing:
                raise GateError("labels", f"{missing[0]}; make it, or pass --num_prompts N to see the schedule")
            count = len(read_prompts(Path(args.prompt_data), args.input_key, args.label_key))
        print(report(args, min(count, int(args.max_samples))))
    except GateError as error:
        sys.exit(f"preflight_lr: {error}")


if __name__ == "__main__":
    main()
