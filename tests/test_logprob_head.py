"""Logprobs straight from hidden states: the values and gradients of full logits, without the logits."""

from pathlib import Path

import pytest
import torch
from planned import make_samples

from gptoss_rl.models.random_model import random_adapter
from gptoss_rl.training.logprob_head import FrozenHeadLogProbs, install_log_prob_head
from gptoss_rl.training.policy import response_log_probs, token_log_probs

N, H, V = 23, 16, 50


def inputs(dtype: torch.dtype):
    torch.manual_seed(0)
    hidden = torch.randn(N, H, dtype=dtype, requires_grad=True)
    return hidden, torch.randn(V, H, dtype=dtype), torch.randint(0, V, (N,)), torch.randn(N), torch.randn(N)


@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [1, 5, 23, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_are_those_of_full_logits(entropy_grad, temperature, rows, dtype, tolerance) -> None:
    hidden, weight, labels, on_log_probs, on_entropy = inputs(dtype)
    log_probs, entropy = FrozenHeadLogProbs.apply(hidden, weight, labels, temperature, rows, entropy_grad)
    loss = (log_probs * on_log_probs).sum() + (entropy * on_entropy).sum()
    (got,) = torch.autograd.grad(loss, hidden)

    exact = hidden.detach().double().requires_grad_()
    log_p = torch.log_softmax(exact @ weight.double().t() / temperature, dim=-1)
    wanted_log_probs, wanted_entropy = log_p.gather(1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    kept_entropy = wanted_entropy if entropy_grad else wanted_entropy.detach()
    (wanted,) = torch.autograd.grad((wanted_log_probs * on_log_probs).sum() + (kept_entropy * on_entropy).sum(), exact)

    assert (log_probs - wanted_log_probs).abs().max() < tolerance * wanted_log_probs.abs().max()
    assert (entropy - wanted_entropy).abs().max() < tolerance * 10
    assert (got - wanted).norm() / wanted.norm() < tolerance


def test_a_tiny_factor_survives_bf16() -> None:
    # 1 / (samples x max length) is 1e-6; it multiplies in float32 before anything is rounded.
    hidden, weight, labels, _, _ = inputs(torch.bfloat16)
    log_probs, _ = FrozenHeadLogProbs.apply(hidden, weight, labels, 1.0, 5, False)
    (small,) = torch.autograd.grad((log_probs * 2.0**-20).sum(), hidden, retain_graph=True)
    (whole,) = torch.autograd.grad(log_probs.sum(), hidden)
    assert torch.equal(small.float() * 2.0**20, whole.float())


def test_no_row_gives_no_logprob_and_a_gradient_of_zero() -> None:
    hidden, weight, labels, _, _ = inputs(torch.float32)
    log_probs, entropy = FrozenHeadLogProbs.apply(hidden[:0], weight, labels[:0], 1.0, 5, False)
    assert log_probs.shape == entropy.shape == (0,)
    (grad,) = torch.autograd.grad(log_probs.sum(), hidden)
    assert grad.abs().max() == 0


def test_the_model_gives_the_same_logprobs_and_still_has_logits(gpt_oss_folder: Path) -> None:
    plain, chunked = (random_adapter(gpt_oss_folder, rank=4) for _ in range(2))
    assert install_log_prob_head(chunked, 3)
    sample = max(make_samples(4, plain.config.vocab_size), key=lambda s: s.sequences.shape[1])
    positions = torch.arange(sample.sequences.shape[1])[None]
    rows = [
        response_log_probs(model, sample.sequences, sample.action_mask, sample.attention_mask, positions, 1.0)
        for model in (plain, chunked)
    ]
    assert torch.allclose(rows[0][0], rows[1][0], atol=1e-6)
    assert torch.allclose(rows[0][1].entropy, rows[1][1].entropy, atol=1e-5)
    assert torch.equal(plain(sample.sequences).logits, chunked(sample.sequences).logits)


def test_a_projection_that_is_trained_keeps_its_logits(gpt_oss_folder: Path) -> None:
    model = random_adapter(gpt_oss_folder, rank=4)
    model.get_base_model().lm_head.weight.requires_grad_(True)
    assert not install_log_prob_head(model, 3)
    assert not install_log_prob_head(random_adapter(gpt_oss_folder, rank=4), 0)  # off


def test_no_tensor_of_all_logits_is_ever_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    original = torch.mm

    def watched(*args, **kwargs):
        nonlocal largest
        out = original(*args, **kwargs)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(torch, "mm", watched)
    hidden, weight, labels, _, _ = inputs(torch.float32)
    log_probs, _ = FrozenHeadLogProbs.apply(hidden, weight, labels, 1.0, 4, False)
    log_probs.sum().backward()
    assert 0 < largest <= max(4 * V, N * H)
    assert token_log_probs(hidden @ weight.t(), labels, 1.0)[0].shape == log_probs.shape
