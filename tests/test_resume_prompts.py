"""A run that was killed and resumed draws the prompts and makes the evaluations that it would have: upstream's own loop,
installed and patched, over stand-ins for actors and engines."""

import argparse
import copy
import math
import types
from pathlib import Path

import pytest
import torch

from gptoss_rl.run import controller
from gptoss_rl.run_files import read_json_lines

POOL, GROUP = 12, 2


def experience(prompt: int, reward: float) -> types.SimpleNamespace:
    """A sample of one response token."""
    info = dict.fromkeys(("policy_version", "response_length", "total_length", "truncated", "answer_found", "final_channel"), 1)
    info = {name: torch.tensor([value]) for name, value in info.items()}
    return types.SimpleNamespace(prompts=[prompt], rewards=torch.tensor([reward]), scores=torch.tensor([reward]), info=info,
                                 action_mask=torch.ones(1, 1), rollout_log_probs=torch.zeros(1, 1))  # fmt: skip


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes a trainer: new, or one that resumes from a checkpoint's client states."""
    from openrlhf.trainer.ppo_trainer import PPOTrainer
    from openrlhf.trainer.ppo_utils import experience_maker
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    ray = types.SimpleNamespace(wait=lambda refs, **_: (refs[:1], refs[1:]), get=lambda ref: ref)
    monkeypatch.setattr(experience_maker, "ray", ray)
    monkeypatch.setattr(
        controller, "sample_record", lambda s, _tokenizer, step: {"step": step, "id": s.prompts[0], "correct": True}
    )

    class Trainer(PPOTrainer.__ray_metadata__.modified_class):
        def __init__(self, states: dict, mixed: range = range(POOL), **changes) -> None:
            flags = {"seed": 42, "num_episodes": 2, "rollout_batch_size": 4, "n_samples_per_prompt": GROUP,
                     "dynamic_filtering": False, "refill_max_prompts": 8, "dynamic_filtering_reward_range": (0, 1),
                     "vllm_enable_sleep": False, "loss_normalizer": "constant", "eval_steps": math.inf, "canary_prompts": 0,
                     "eval_temperature": 0.0, "eval_n_samples_per_prompt": 1, "run_dir": str(tmp_path),
                     "max_mismatch_kl": 0, "mismatch_patience": 1, "param_dtype": "bf16"}  # fmt: skip
            self.args = argparse.Namespace(**{**flags, **changes})
            self.states, self.drawn, self.saved, self.figures = states, [], [], []
            strategy = DeepspeedStrategy(seed=self.args.seed, args=self.args)
            collate = lambda rows: (None, rows, rows)  # noqa: E731
            self.prompts_dataloader = strategy.setup_dataloader(list(range(POOL)), 1, True, True, collate)
            self.eval_dataloader = range(3)
            self.tokenizer = self.wandb_logger = self.tensorboard_logger = None
            self.generate_kwargs = {}
            generator = experience_maker.SamplesGenerator(strategy, self.prompts_dataloader, None, None, [])
            generator._dispatch_prompts_to_vllm = lambda prompts, *_, **__: [[(p, k) for k in range(GROUP)] for p in prompts]
            generator._process_response_into_experience = lambda response, **_: experience(
                response[0], float(response[1]) if response[0] in mixed else 0.0
            )
            generator.generate_eval_samples = lambda **_: [experience(100 + p, 1.0) for p in self.eval_dataloader]
            self.samples_generator = generator
            self.run = controller.RunController(self.args)
            self.run.train_planned = lambda _trainer, samples: self.drawn.append([s.prompts[0] for s in samples[::GROUP]]) or {}

        def init_checkpoint_states(self) -> dict:
            return copy.deepcopy(self.states)

        def broadcast_to_vllm(self) -> None:
            self.run.policy_version = 1

        def save_logs_and_checkpoints(self, global_step: int, status: dict, client_states: dict) -> None:
            self.saved.append(copy.deepcopy(client_states))
            self.figures.append(dict(self.run.pending))

    new = {"episode": 0, "global_step": 0, "total_consumed_prompts": 0, "data_loader_state_dict": {}}

    def run(states: dict = new, **changes) -> Trainer:
        trainer = Trainer(states, **changes)
        trainer.fit()
        return trainer

    return run


@pytest.mark.parametrize("batch", [4, 5])
@pytest.mark.parametrize("refill", [False, True])
def test_a_run_resumed_after_any_step_draws_what_it_would_have_drawn(start, batch: int, refill: bool) -> None:
    flags = {"rollout_batch_size": batch, "dynamic_filtering": refill, "mixed": range(4, POOL)}
    whole = start(**flags)
    orders = {tuple(prompt for step in whole.drawn[i::2] for prompt in step) for i in (0, 1)}
    assert len(orders) == 2
    assert {states["episode"] for states in whole.saved} == {0, 1}
    for taken, states in enumerate(whole.saved, start=1):
        assert start(states, **flags).drawn == whole.drawn[taken:], f"resumed after step {taken}"


def test_a_run_resumed_after_its_drained_last_step_takes_no_further_step(start) -> None:
    # No group has variance, so the first step draws 8 of the 12 prompts, and the second finds nothing to refill from.
    flags = {"dynamic_filtering": True, "mixed": range(0), "num_episodes": 1}
    whole = start(**flags)
    assert len(whole.drawn) == 2
    assert start(whole.saved[-1], **flags).drawn == []


def test_the_figures_of_a_refilled_step_are_those_of_all_groups_drawn(start) -> None:
    # One sample of each of two prompts is right, and nothing else.
    whole = start(dynamic_filtering=True, mixed=range(2), num_episodes=1, rollout_batch_size=2, refill_max_prompts=100)
    groups = [figures["rollout/samples"] / GROUP for figures in whole.figures]
    assert sum(groups) == whole.saved[-1]["total_consumed_prompts"] > 2 * len(groups)
    right = sum(figures["reward/mean"] * n * GROUP for figures, n in zip(whole.figures, groups, strict=True))
    wrong = sum(figures["reward/all_wrong"] * n for figures, n in zip(whole.figures, groups, strict=True))
    assert (right, wrong) == (pytest.approx(2), pytest.approx(sum(groups) - 2))


def evaluations(folder: Path) -> list[tuple[int, int]]:
    return [(record["step"], record["id"]) for record in read_json_lines(folder / "eval.jsonl")]


@pytest.mark.parametrize("kept", [0, 2, 3])
def test_an_evaluation_that_a_kill_cut_off_is_made_when_the_run_is_resumed(start, tmp_path: Path, kept: int) -> None:
    whole = start(num_episodes=1, eval_steps=2)
    expected = [(step, problem) for step in (0, 2, 3) for problem in (100, 101, 102)]
    assert evaluations(tmp_path) == expected
    # Killed in the evaluation of step 2, with the checkpoint of step 2 and this much of eval.jsonl.
    file = tmp_path / "eval.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[: 3 + kept]))
    start(whole.saved[1], num_episodes=1, eval_steps=2)
    assert evaluations(tmp_path) == expected
    # Nor is one that is whole made twice: of a run that had come to its end.
    start(whole.saved[2], num_episodes=1, eval_steps=2)
    assert evaluations(tmp_path) == expected
