"""What the canary looks at before step 1; with real engines it runs in test_engine_sync.py and test_train_cpu.py."""

import types

import pytest
import ray
import torch
from openrlhf.models import Actor

from gptoss_rl.errors import GateError
from gptoss_rl.run.canary import (
    MAX_RESTORE_ERROR,
    START_STD,
    check_prompt_parity,
    judge_restored,
    judge_shift,
    perturb_until_visible,
    response_positions,
    score_with_engines,
    score_with_trainer,
    scored_positions,
    set_temperature,
    start_parity,
)

SEQUENCES, STARTS = [[1, 2, 3, 4, 5], [6, 7, 8]], [3, 1]  # (token ids, index of the first response token)


def test_scored_tokens_start_with_the_second_of_each_sequence() -> None:
    assert response_positions(SEQUENCES, STARTS).tolist() == [False, False, True, True, True, True]


def test_prompts_and_responses_are_judged_apart() -> None:
    # A difference that confident responses hide must not be averaged away.
    differences = torch.tensor([0.6, -0.4, 0.001, 0.0, -0.001, 0.002])
    figures = start_parity(differences, response_positions(SEQUENCES, STARTS), scored_positions(SEQUENCES))
    assert figures["prompt_abs_diff_mean"] == pytest.approx(0.5)
    assert figures["parity/abs_diff_mean"] == pytest.approx(0.001)


@pytest.mark.parametrize("difference", [0.11, float("nan"), float("inf")])
def test_a_difference_on_prompts_stops_the_run(difference: float) -> None:
    with pytest.raises(GateError, match=r"gate parity.*allowed 0\.1 \(--parity_max_prompt_abs_diff\).*without sinks"):
        check_prompt_parity(difference, 0.1)
    check_prompt_parity(difference, 0.0)  # off
    check_prompt_parity(0.09, 0.1)


def shifts(scale: float, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What noise in LoRA B does to both sides' logprobs: 0.35 nats, and `noise` nats of implementation on either side."""
    generator = torch.Generator().manual_seed(0)
    true, trainer, sampler = (torch.randn(500, generator=generator) * 1.25 for _ in range(3))
    return 0.35 * true + noise * trainer, scale * 0.35 * true + noise * sampler


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.14])  # nats; 0.14 is the most that is published for gpt-oss
@pytest.mark.parametrize("scale", [0.9, 1.0, 1.1])
def test_noise_alone_does_not_stop_a_sampler_that_follows(scale: float, noise: float) -> None:
    figures = judge_shift(*shifts(scale, noise), std=0.01)
    assert figures["shift_ratio"] == pytest.approx(scale, abs=0.05)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.14])
@pytest.mark.parametrize("scale", [0.0, 0.5, 0.7, 1.4, 1.5, 2.0, -1.0, float("nan")])
def test_an_adapter_at_another_scale_stops_the_run(scale: float, noise: float) -> None:
    # Half and one and a half keep a correlation of 1 and a relative error of 0.5, which two noisy equals may have, too.
    with pytest.raises(GateError, match=r"gate canary.*times as far \(0\.8 to 1\.25\).*another scale"):
        judge_shift(*shifts(scale, noise), std=0.01)


@pytest.mark.parametrize("who", ["trainer", "sampler"])
@pytest.mark.parametrize("drift", [2 * MAX_RESTORE_ERROR, float("nan")])
def test_a_side_that_does_not_come_back_is_named(who: str, drift: float) -> None:
    healthy = torch.full((4,), MAX_RESTORE_ERROR / 2)
    judge_restored(healthy, healthy)
    moved = torch.tensor([0.0, drift, drift, drift])
    with pytest.raises(GateError, match=f"gate canary.*restored the {who} is still"):
        judge_restored(*((moved, healthy) if who == "trainer" else (healthy, moved)))


def test_a_temperature_set_for_the_canary_reaches_openrlhfs_actor(gpt_oss_folder) -> None:
    actor = Actor(str(gpt_oss_folder), attn_implementation="eager", param_dtype="fp32", temperature=0.5)
    tokens = torch.tensor([[5, 9, 14, 3, 7]])
    policy, mask = types.SimpleNamespace(actor=actor), torch.ones_like(tokens)
    tempered = actor(tokens, mask[:, 1:], mask)
    assert set_temperature(policy, 1.0) == 0.5
    plain = torch.log_softmax(actor.model(tokens).logits[0, :-1], dim=-1).gather(1, tokens[0, 1:, None])[:, 0]
    assert torch.allclose(actor(tokens, mask[:, 1:], mask)[0], plain, atol=1e-5)
    assert not torch.allclose(tempered[0], plain, atol=0.01)


@ray.remote
class Scorer:
    """An engine that scores every token alike, or a policy actor whose every logit, divided by its temperature, is -1."""

    def __init__(self, logprob: float, temperature: float = 1.0, nats_per_std: float = 0.0):
        self.logprob, self.actor = logprob, types.SimpleNamespace(temperature=temperature)
        self.nats_per_std = nats_per_std

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        return [[self.logprob] * (len(tokens) - 1) for tokens in sequences]

    def forward(self, sequences: list[torch.Tensor], attention_mask, action_mask) -> list[torch.Tensor]:
        return [torch.full((1, tokens.shape[1] - 1), self.logprob / self.actor.temperature) for tokens in sequences]

    def perturb_lora(self, std: float, seed: int) -> None:
        self.saved, self.logprob = self.logprob, self.logprob - self.nats_per_std * std

    def restore_lora(self) -> None:
        self.logprob = self.saved

    def temperature(self) -> float:
        return self.actor.temperature


class Group:
    """OpenRLHF's `RayActorGroup`, as far as the canary uses it."""

    def __init__(self, actors: list):
        self._actor_handlers = actors

    def async_run_method(self, method_name: str, *args, **kwargs) -> list:
        return [getattr(actor, method_name).remote(*args, **kwargs) for actor in self._actor_handlers]

    def async_run_method_batch(self, method_name: str, **batch: list) -> list:
        share = len(batch["sequences"]) // len(self._actor_handlers)
        parts = [{k: v[i * share : (i + 1) * share] for k, v in batch.items()} for i in range(len(self._actor_handlers))]
        return [getattr(actor, method_name).remote(**part) for actor, part in zip(self._actor_handlers, parts, strict=True)]


@pytest.fixture(scope="module")
def scorers():
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield Scorer.options(num_cpus=0)
    ray.shutdown()


def test_trainer_and_sampler_are_compared_at_one_temperature(scorers) -> None:
    # vLLM scores prompts from raw logits. Divided by 0.5, an equal trainer would be one nat off and stop the run.
    policies = [scorers.remote(-1.0, temperature=0.5) for _ in range(2)]
    trainer = types.SimpleNamespace(actor_model_group=Group(policies), vllm_engines=[scorers.remote(-1.0)])
    scores = score_with_trainer(trainer, SEQUENCES)
    assert torch.equal(scores, score_with_engines(trainer, SEQUENCES))
    assert scores.tolist() == [-1.0] * 6
    # Training goes on at its own.
    assert ray.get([policy.temperature.remote() for policy in policies]) == [0.5, 0.5]


@pytest.mark.parametrize("logprob", [-1.1, float("nan")])
def test_an_engine_that_scores_apart_from_the_first_is_named(scorers, logprob: float) -> None:
    engines = [scorers.remote(-1.0), scorers.remote(-1.0), scorers.remote(logprob)]
    with pytest.raises(GateError, match="gate canary.*engine 2 scores the same tokens"):
        score_with_engines(types.SimpleNamespace(vllm_engines=engines), SEQUENCES)


def perturbed(scorers, nats_per_std: float) -> tuple[types.SimpleNamespace, torch.Tensor]:
    """A trainer of one rank, and its scores before."""
    policy = scorers.remote(-1.0, nats_per_std=nats_per_std)
    return types.SimpleNamespace(actor_model_group=Group([policy])), torch.full((6,), -1.0)


@pytest.mark.parametrize("nats_per_std", [0.0, 0.1, float("nan")])
def test_an_adapter_that_the_trainer_itself_does_not_use_stops_the_run(scorers, nats_per_std: float) -> None:
    # Otherwise nothing would move on either side, and two shifts of zero agree.
    trainer, before = perturbed(scorers, nats_per_std)
    with pytest.raises(GateError, match=r"gate canary.*moved the trainer's own logprobs by only .*not in the forward pass"):
        perturb_until_visible(trainer, SEQUENCES, response_positions(SEQUENCES, STARTS), before)
    assert torch.equal(score_with_trainer(trainer, SEQUENCES), before)  # the last noise was taken away again, too


def test_noise_is_doubled_until_it_is_seen_and_never_adds_up(scorers) -> None:
    trainer, before = perturbed(scorers, 10.0)
    std, shift = perturb_until_visible(trainer, SEQUENCES, response_positions(SEQUENCES, STARTS), before)
    assert std == 4 * START_STD
    assert shift.tolist() == pytest.approx([-10 * std] * 6)
