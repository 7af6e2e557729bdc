"""DPO's loss over pairs of trajectories, against closed forms."""

import math
from typing import Any

import pytest
import torch

from lit_rft.objectives import preference_loss, trajectory_log_probs

P = 6


def ratios(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(P, generator=g, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_equals_a_slow_loop(beta: float, smoothing: float) -> None:
    chosen, rejected = ratios()
    total = 0.0
    for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True):
        p = 1 / (1 + math.exp(-beta * (c - r)))
        total -= (1 - smoothing) * math.log(p) + smoothing * math.log(1 - p)
    found = preference_loss(chosen, rejected, beta=beta, label_smoothing=smoothing, normalizer=10)
    assert float(found.loss) == pytest.approx(total / 10, abs=1e-12)
    assert float(found.chosen_reward) == pytest.approx(beta * float(chosen.mean()))
    assert float(found.rejected_reward) == pytest.approx(beta * float(rejected.mean()))
    assert float(found.accuracy) == pytest.approx(float((chosen > rejected).float().mean()))
    default = preference_loss(chosen, rejected, beta=beta, label_smoothing=smoothing).loss
    torch.testing.assert_close(default * P, found.loss * 10)


def test_gradients_raise_the_chosen_and_lower_the_rejected_alike() -> None:
    chosen, rejected = (x.requires_grad_() for x in ratios())
    assert torch.autograd.gradcheck(lambda c, r: preference_loss(c, r, beta=0.3).loss, (chosen, rejected))
    preference_loss(chosen, rejected, beta=0.3).loss.backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert (chosen.grad < 0).all()
    torch.testing.assert_close(chosen.grad, -rejected.grad)


def test_equal_trajectories_cost_the_logarithm_of_two_and_huge_margins_stay_finite() -> None:
    zero = torch.zeros(3)
    assert float(preference_loss(zero, zero, beta=0.7).loss) == pytest.approx(math.log(2))
    wrong = torch.full((1,), -1e4, requires_grad=True)
    found = preference_loss(wrong, torch.zeros(1), beta=1.0)
    found.loss.backward()
    assert float(found.loss) == 1e4 and wrong.grad is not None and wrong.grad.item() == pytest.approx(-1.0)
    assert preference_loss(torch.zeros(0), torch.zeros(0), beta=0.1).loss == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\), got 0.5"),
        ({"rejected_log_ratios": torch.zeros(2)}, "rejected_log_ratios must have the shape of chosen_log_ratios"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"chosen_log_ratios": torch.zeros(3), "rejected_log_ratios": torch.zeros(3), "beta": 0.1}
    with pytest.raises(ValueError, match=message):
        preference_loss(**{**arguments, **change})


@pytest.mark.parametrize("name", ["mask", "trajectory"])
def test_shapes_of_trajectories_are_checked(name: str) -> None:
    arguments = {"trajectory": torch.zeros(3).long(), "mask": torch.ones(3, 2).bool()}
    with pytest.raises(ValueError, match=f"{name} must have the shape"):
        trajectory_log_probs(torch.zeros(3, 2), **{**arguments, name: arguments[name][:1]}, number=2)


def test_log_probs_are_summed_over_all_utterances_of_a_trajectory() -> None:
    tokens = torch.tensor([[-1.0, -2.0, math.nan], [-3.0, -4.0, -5.0], [-6.0, math.nan, math.nan]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 0, 0]]).bool()
    found = trajectory_log_probs(tokens, torch.tensor([2, 0, 2]), mask, number=4)
    assert found.tolist() == [-8.0, 0.0, -9.0, 0.0]
    x = tokens.clone().requires_grad_()
    trajectory_log_probs(x, torch.tensor([2, 0, 2]), mask, number=4).sum().backward()
    assert x.grad is not None and x.grad.tolist() == mask.float().tolist()
