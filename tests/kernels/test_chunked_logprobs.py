"""Log-probabilities and entropies in slices, and in one piece, equal a plain Python loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ppo import slow_ppo
from toolkit.kernels import chunked_logprobs, use_kernels
from toolkit.kernels.chunked_logprobs import VocabularyHead, slice_tokens, token_logprobs


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 5),
    size=st.integers(2, 30),
    temperature=st.floats(0.5, 3),
    seed=st.integers(0, 1000),
    kernels=st.booleans(),
)
def test_logprobs_and_entropies_equal_a_plain_loop(tokens, size, temperature, seed, kernels):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, size, generator=generator) * 3
    targets = torch.randint(size, (tokens,), generator=generator)
    head = VocabularyHead(torch.nn.Identity(), size)  # its hidden states are the logits
    with use_kernels(kernels):
        logprobs, entropies = token_logprobs(
            head, logits, targets, temperature=temperature, entropy=True
        )
    rows = logits.tolist()
    expected = [
        slow_ppo.log_softmax(row, temperature)[target]
        for row, target in zip(rows, targets.tolist(), strict=True)
    ]
    torch.testing.assert_close(logprobs, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    expected = [slow_ppo.entropy(row, temperature) for row in rows]
    torch.testing.assert_close(entropies, torch.tensor(expected), atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("shift", [0.0, 1024.0, -1024.0])
def test_logits_far_from_zero_lose_no_digits(shift, kernels):
    """The shift is exact in float32 and does not change the distribution."""
    logits = torch.tensor([[3.0, 1.0, -2.0, 0.5]])
    head, row = VocabularyHead(torch.nn.Identity(), 4), logits[0].tolist()
    with use_kernels(kernels):
        logprobs, entropies = token_logprobs(
            head, logits + shift, torch.tensor([1]), temperature=1.0, entropy=True
        )
    assert logprobs.item() == pytest.approx(slow_ppo.log_softmax(row, 1.0)[1], abs=1e-6)
    assert entropies.item() == pytest.approx(slow_ppo.entropy(row, 1.0), abs=1e-6)


@pytest.mark.parametrize("entropy_gradient", [True, False])
@pytest.mark.parametrize("trainable_head", [True, False])
def test_slices_change_neither_numbers_nor_gradients(trainable_head, entropy_gradient, monkeypatch):
    """Eleven tokens in one piece, in one slice, two at a time, and four at a time as on a GPU."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator) for n in (11, 20))
    targets = torch.randint(20, (11,), generator=generator)
    monkeypatch.setattr(chunked_logprobs, "GPU_SLICE_BYTES", 4 * 20 * 4)
    results = []
    for kernels, slice_bytes, gpu in (
        (False, 1, False),
        (True, 1 << 20, False),
        (True, 2 * 20 * 4, False),
        (True, 1, True),
    ):
        monkeypatch.setattr(chunked_logprobs, "SLICE_BYTES", slice_bytes)
        monkeypatch.setattr(chunked_logprobs, "is_on_gpu", lambda _, gpu=gpu: gpu)
        layer = torch.nn.Linear(8, 20, bias=False)
        layer.weight.data = weight.clone()
        layer.requires_grad_(trainable_head)
        head = VocabularyHead(layer, 20, scale=1.5, softcap=5.0)
        states = hidden.clone().requires_grad_()
        with use_kernels(kernels):
            logprobs, entropies = token_logprobs(
                head,
                states,
                targets,
                temperature=0.7,
                entropy=True,
                entropy_gradient=entropy_gradient,
            )
        assert entropies.requires_grad is entropy_gradient
        (logprobs.sum() + 0.1 * entropies.sum()).backward()
        gradients = [states.grad, *([layer.weight.grad] if trainable_head else [])]
        results.append([logprobs, entropies, *gradients])
    for plain, *others in zip(*results, strict=True):
        for tensor in others:
            torch.testing.assert_close(tensor, plain, atol=1e-6, rtol=1e-6)


def test_slices_are_larger_on_a_gpu():
    assert slice_tokens(1536, on_gpu=False) == 128
    assert slice_tokens(151_936, on_gpu=False) == 27
    assert slice_tokens(151_936, on_gpu=True) == 441
