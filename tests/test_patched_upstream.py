"""Behaviour of the installed, patched OpenRLHF where a patch changes it: each test fails on the pristine package."""

import argparse
import asyncio
import types

import pytest
import torch
from transformers import GptOssForCausalLM

from gptoss_rl.errors import GateError
from gptoss_rl.prompts import render_prompt
from gptoss_rl.training.policy import check_trainable_checkpoint, enter_inference_mode, response_log_probs


def test_openrlhf_imports_without_flash_attn() -> None:
    import importlib.util

    import openrlhf.models.ring_attn_utils as module

    assert importlib.util.find_spec("flash_attn") is None, "this test needs an environment without flash-attn"
    assert module.get_ring_attn_group() is None


def test_replay_buffer_lives_on_the_accelerator() -> None:
    from openrlhf.trainer.ppo_utils import NaiveReplayBuffer

    assert NaiveReplayBuffer(2).target_device == torch.device("cpu")


def test_fp32_is_a_parameter_type() -> None:
    from openrlhf.utils.utils import convert_to_torch_dtype

    assert convert_to_torch_dtype("fp32") is torch.float32
    with pytest.raises(ValueError, match="fp8"):
        convert_to_torch_dtype("fp8")


def test_no_optimizer_group_is_empty() -> None:
    from openrlhf.utils.deepspeed.deepspeed_utils import get_optimizer_grouped_parameters

    lora_only = torch.nn.Linear(2, 2, bias=False)
    groups = get_optimizer_grouped_parameters(lora_only, 0.1)
    assert [len(group["params"]) for group in groups] == [1]
    both = torch.nn.Linear(2, 2, bias=True)
    assert [g["weight_decay"] for g in get_optimizer_grouped_parameters(both, 0.1)] == [0.1, 0.0]


def loaded(quantised: bool = False, kernel: str = "eager"):
    config = types.SimpleNamespace(model_type="gpt_oss", _attn_implementation=kernel)
    if quantised:
        config.quantization_config = {"quant_method": "mxfp4"}
    return types.SimpleNamespace(config=config)


def test_a_quantised_checkpoint_is_refused() -> None:
    with pytest.raises(GateError, match="quantised.*--vllm_pretrain"):
        check_trainable_checkpoint(loaded(quantised=True))
    check_trainable_checkpoint(loaded())


@pytest.mark.parametrize("kernel", ["flash_attention_2", "sdpa", "flex_attention"])
def test_attention_without_sinks_is_refused(kernel: str) -> None:
    with pytest.raises(GateError, match=f"{kernel}.*sinks"):
        check_trainable_checkpoint(loaded(kernel=kernel))


def test_the_actor_loads_gpt_oss_for_training(gpt_oss_folder) -> None:
    from openrlhf.models import Actor

    actor = Actor(str(gpt_oss_folder), attn_implementation="eager", param_dtype="fp32", lora_rank=4,
                  target_modules=["q_proj"])  # fmt: skip
    assert actor.model.config.output_router_logits is False
    assert {n for n, p in actor.model.named_parameters() if p.requires_grad} == {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{matrix}.default.weight"
        for layer in (0, 1)
        for matrix in "AB"
    }


def test_experts_stay_routed_in_inference(gpt_oss_folder) -> None:
    model = GptOssForCausalLM.from_pretrained(gpt_oss_folder, dtype=torch.float32)
    enter_inference_mode(model)
    modes = {type(m).__name__: m.training for m in model.modules()}
    assert modes["GptOssExperts"] is True
    assert modes["GptOssAttention"] is False


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_logprobs_equal_full_logits(gpt_oss_folder, temperature: float) -> None:
    model = GptOssForCausalLM.from_pretrained(gpt_oss_folder, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(0)
    sequences = torch.randint(3, 300, (2, 20))
    attention_mask = torch.ones_like(sequences)
    attention_mask[1, 15:] = 0
    action_mask = torch.zeros(2, 19, dtype=torch.long)
    action_mask[0, 8:19] = 1
    action_mask[1, 5:14] = 1
    positions = attention_mask.cumsum(-1) - 1
    positions.masked_fill_(attention_mask == 0, 1)
    log_probs, extras = response_log_probs(
        model, sequences, action_mask, attention_mask, positions, temperature, entropy_grad=True
    )
    logits = model(sequences, attention_mask=attention_mask, position_ids=positions).logits[:, :-1] / temperature
    full = logits.log_softmax(-1)
    expected = full.gather(-1, sequences[:, 1:].unsqueeze(-1)).squeeze(-1) * action_mask
    assert torch.allclose(log_probs, expected, atol=1e-5)
    assert torch.allclose(extras.entropy, -(full.exp() * full).sum(-1) * action_mask, atol=1e-5)
    (extras.entropy.sum() + log_probs.sum()).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "q_proj" in n)


def dataset_arguments(**changes) -> argparse.Namespace:
    base = {
        "input_key": "input",
        "label_key": "label",
        "apply_chat_template": True,
        "reasoning_effort": "low",
    }
    return argparse.Namespace(**{**base, **changes})


def test_the_dataset_renders_the_one_prompt() -> None:
    from openrlhf.datasets import PromptDataset

    strategy = types.SimpleNamespace(args=dataset_arguments(), is_rank_0=lambda: False)
    tokenizer = types.SimpleNamespace(apply_chat_template=lambda *_, **__: "never called")
    dataset = PromptDataset([{"input": "1 + 1?", "label": 2}], tokenizer, strategy)
    assert dataset[0] == ("default", render_prompt("1 + 1?", "low"), "2")


def test_a_prompt_that_is_too_long_stops_the_run() -> None:
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    def tokenizer(text, **_):
        return {"input_ids": torch.arange(50).unsqueeze(0)}

    call = SingleTurnAgentExecutor().execute(
        render_prompt("long"), "1", types.SimpleNamespace(max_tokens=10), 40, tokenizer, None
    )
    with pytest.raises(GateError, match="has 50 tokens, --prompt_max_len is 30"):
        asyncio.run(call)


def data_order(seed: int) -> list[int]:
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    strategy = DeepspeedStrategy(seed=seed, args=argparse.Namespace(param_dtype="bf16"))
    return [batch.item() for batch in strategy.setup_dataloader(list(range(50)), 1, True, True)]


def test_prompt_order_is_seeded() -> None:
    torch.manual_seed(1)
    first = data_order(42)
    torch.manual_seed(2)
    assert data_order(42) == first
    assert data_order(43) != first
    assert sorted(first) == list(range(50))


@pytest.mark.parametrize("offload", [True, False])
def test_offload_reaches_the_deepspeed_config(offload: bool) -> None:
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    args = argparse.Namespace(param_dtype="bf16", offload=offload)
    config = DeepspeedStrategy(zero_stage=3, args=args).get_ds_train_config(is_actor=True)
    assert config["zero_optimization"]["offload_param"]["device"] == ("cpu" if offload else "none")


def test_the_reward_function_gets_prompt_and_decoded_response(tmp_path) -> None:
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    seen = tmp_path / "seen.txt"
    reward_file = tmp_path / "reward.py"
    reward_file.write_text(
        f"def reward_func(q, p, l):\n    open({str(seen)!r}, 'w').write(q[0])\n    return {{'rewards': [0]}}\n"
    )

    class Tokenizer:
        def __call__(self, text, **_):
            return {"input_ids": torch.tensor([[1, 2, 3]])}

        def decode(self, tokens, **_):
            return "".join(f"<{t}>" for t in tokens)

    class Engine:
        async def generate(self, tokens, params):
            output = types.SimpleNamespace(token_ids=[7, 8], finish_reason="stop", logprobs=None)
            return types.SimpleNamespace(outputs=[output])

    params = types.SimpleNamespace(max_tokens=10, logprobs=None)
    executor = SingleTurnAgentExecutor(str(reward_file))
    result = asyncio.run(executor.execute("PROMPT", "1", params, 40, Tokenizer(), Engine()))
    assert seen.read_text() == "PROMPT<7><8>"
    assert (result["reward"], result["scores"]) == (0.0, 0.0)
    assert type(result["reward"]) is float


@pytest.mark.parametrize(("pool", "bound", "drawn", "groups"), [(100, 6, 6, 4), (5, 50, 5, 4), (100, 50, 7, 4)])
def test_refill_stops_at_its_bound_and_keeps_the_last_batch(monkeypatch, pool, bound, drawn, groups) -> None:
    # Prompts 0, 1 and 2 have no variance; the bound, or an empty pool, lets them in after all.
    from openrlhf.trainer.ppo_utils import experience_maker

    ray = types.SimpleNamespace(wait=lambda refs, **_: (refs[:1], refs[1:]), get=lambda ref: ref)
    monkeypatch.setattr(experience_maker, "ray", ray)
    generator = experience_maker.SamplesGenerator.__new__(experience_maker.SamplesGenerator)
    generator.args = types.SimpleNamespace(refill_max_prompts=bound, dynamic_filtering_reward_range=(0, 1))

    def score(prompt: int, sample: int) -> float:
        return 0.0 if prompt < 3 else float(sample)

    generator._dispatch_prompts_to_vllm = lambda prompts, labels, **_: [[(p, s) for s in range(2)] for p in prompts]
    generator._process_response_into_experience = lambda response, **_: types.SimpleNamespace(
        prompt=response[0], scores=torch.tensor([score(*response)])
    )
    prompts = iter([(None, [i], [i]) for i in range(pool)])
    accepted, consumed, exhausted = generator._generate_vllm(prompts, 4, dynamic_filtering=True)
    assert (consumed, len(accepted), exhausted) == (drawn, 2 * groups, False)
    assert [e.prompt for e in accepted[::2]] == [e.prompt for e in accepted[1::2]]
