"""Weights and weighted likelihood, against slow loops in float64."""

import math

import pytest
import torch

from lit_rft.objectives import advantage_weights, weighted_likelihood_loss


def test_weights_equal_a_slow_loop() -> None:
    q = torch.tensor([0.5, 0.0, -1.0, 3.0, 900.0], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    weights, clamped = advantage_weights(q, v, advantage_temperature=0.5, max_weight=20.0)
    expected = [min(math.exp(min((a - b) / 0.5, 700)), 20.0) for a, b in zip(q.tolist(), v.tolist(), strict=True)]
    assert weights.tolist() == pytest.approx(expected, abs=1e-12)
    assert clamped.tolist() == [False, False, False, True, True]
    assert not weights.requires_grad
    assert torch.isfinite(weights).all()


def test_every_knob_of_the_weights_counts() -> None:
    q, v = torch.tensor([1.0, 0.2]), torch.zeros(2)
    base = advantage_weights(q, v, advantage_temperature=0.5).weights
    assert not torch.allclose(base, advantage_weights(q, v, advantage_temperature=1.0).weights)
    assert not torch.allclose(base, advantage_weights(q, v, advantage_temperature=0.5, max_weight=2.0).weights)
    huge = advantage_weights(q, v, advantage_temperature=1e9).weights
    assert torch.allclose(huge, torch.ones(2))  # plain likelihood


def test_loss_equals_a_slow_loop_and_zero_weight_gives_no_gradient() -> None:
    likelihood = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    loss = weighted_likelihood_loss(likelihood, weights, normalizer=4.0)
    assert float(loss) == pytest.approx((2.0 + 1.5) / 4.0)
    loss.backward()
    assert likelihood.grad is not None and likelihood.grad.tolist() == [-0.5, 0.0, -0.125]
    assert weights.grad is None
    halves = [weighted_likelihood_loss(likelihood[i:j], weights[i:j], normalizer=3) for i, j in ((0, 1), (1, 3))]
    assert torch.allclose(sum(halves), weighted_likelihood_loss(likelihood, weights))


def test_wrong_arguments_are_named() -> None:
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="advantage_temperature and max_weight"):
        advantage_weights(x, x, advantage_temperature=0.0)
    with pytest.raises(ValueError, match="values must have the shape"):
        advantage_weights(x, x[:1], advantage_temperature=1.0)
    with pytest.raises(ValueError, match="weights must have the shape"):
        weighted_likelihood_loss(x, x[:1])
