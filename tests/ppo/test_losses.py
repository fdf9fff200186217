"""PPO's losses against hand arithmetic and plain loops."""

import math

import pytest
import torch

from toolkit.ppo.losses import policy_loss, value_loss


def test_policy_loss_by_hand():
    old = torch.zeros(1, 4)
    new = torch.log(torch.tensor([[1.5, 0.5, 1.1, 9.0]]))
    advantages = torch.tensor([[1.0, -1.0, 2.0, 5.0]])
    mask = torch.tensor([[True, True, True, False]])
    result = policy_loss(new, old, advantages, mask, cliprange=0.2)
    # clipped gain 1.2·1; clipped loss .8·1; inside 1.1·2
    assert result.loss.item() == pytest.approx(-1.2 + 0.8 - 2.2, abs=1e-6)
    assert result.clipped.item() == 2
    assert result.ratio.item() == pytest.approx(1.5 + 0.5 + 1.1, abs=1e-6)
    expected_kl = 0.5 * (math.log(1.5) ** 2 + math.log(0.5) ** 2 + math.log(1.1) ** 2)
    assert result.approx_kl.item() == pytest.approx(expected_kl, abs=1e-6)


def test_policy_gradient_is_zero_where_clipped_and_where_masked():
    new = torch.log(torch.tensor([[1.5, 1.0, 1.0]])).requires_grad_()
    advantages = torch.tensor([[1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False]])
    policy_loss(new, torch.zeros(1, 3), advantages, mask, cliprange=0.2).loss.backward()
    assert new.grad.tolist() == [[0.0, -1.0, 0.0]]


def test_value_is_clipped_around_old_value():
    old, returns = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    values = torch.tensor([[1.5, 1.5]], requires_grad=True)
    loss, clipped = value_loss(values, old, returns, torch.tensor([[True, True]]), cliprange=0.2)
    # near = 1.2 both times: max(.25, .64) and max(2.25, 1.44)
    assert loss.item() == pytest.approx(0.5 * (0.64 + 2.25), abs=1e-6)
    assert clipped.item() == 1
    loss.backward()
    assert values.grad.tolist() == [[0.0, 1.5]]


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_split_batch_has_gradient_of_whole_batch(pieces):
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(10, 6, generator=generator) * 0.1
    old, advantages = torch.randn(2, 10, 6, generator=generator) * 0.1
    mask = torch.rand(10, 6, generator=generator).cumsum(1) < 2  # ragged, no gaps
    whole, cut = new.clone().requires_grad_(), new.clone().requires_grad_()
    (policy_loss(whole, old, advantages, mask, cliprange=0.2).loss / mask.sum()).backward()
    for rows in torch.arange(10).chunk(pieces):
        part = policy_loss(cut[rows], old[rows], advantages[rows], mask[rows], cliprange=0.2)
        (part.loss / mask.sum()).backward()
    assert torch.allclose(whole.grad, cut.grad, atol=1e-9)
