"""Targets, losses and slow copies of critics, against slow loops in float64."""

import math
from typing import Any

import pytest
import torch

from lit_rft.objectives import discounted_returns, expectile_value_loss, polyak_update, q_loss, td_target

N = 7


def numbers(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "rewards": torch.randn(N, generator=g, dtype=torch.float64),
        "next_values": torch.randn(N, generator=g, dtype=torch.float64),
        "terminated": torch.rand(N, generator=g) < 0.4,
        "steps": torch.randint(1, 5, (N,), generator=g),
    }


@pytest.mark.parametrize("with_steps", [False, True])
def test_targets_equal_a_slow_loop(with_steps: bool) -> None:
    data = numbers()
    steps = data.pop("steps")
    found = td_target(**data, discount=0.9, steps=steps if with_steps else None)
    for i in range(N):
        power = int(steps[i]) if with_steps else 1
        bootstrap = 0.0 if data["terminated"][i] else 0.9**power * float(data["next_values"][i])
        assert float(found[i]) == pytest.approx(float(data["rewards"][i]) + bootstrap, abs=1e-12)


def test_targets_have_no_gradient_and_ignore_what_stands_behind_an_end() -> None:
    data = numbers()
    data.pop("steps")
    data["next_values"] = data["next_values"].masked_fill(data["terminated"], math.nan).requires_grad_()
    found = td_target(**data, discount=0.9)
    assert not found.requires_grad
    assert torch.isfinite(found).all()


def test_every_knob_of_the_target_counts() -> None:
    data = numbers()
    steps = data.pop("steps")
    base = td_target(**data, discount=0.9)
    assert not torch.allclose(base, td_target(**data, discount=0.8))
    assert not torch.allclose(base, td_target(**data, discount=0.9, steps=steps))
    flipped = {**data, "terminated": ~data["terminated"]}
    assert not torch.allclose(base, td_target(**flipped, discount=0.9))


def test_q_loss_equals_a_slow_loop_and_moves_q_only() -> None:
    g = torch.Generator().manual_seed(1)
    q = torch.randn(N, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.randn(N, generator=g, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1]).bool()
    loss, error = q_loss(q, y, mask=mask, normalizer=10)
    terms = [(float(q[i]) - float(y[i])) for i in range(N) if mask[i]]
    assert float(loss) == pytest.approx(sum(t * t for t in terms) / 10, abs=1e-12)
    assert float(error) == pytest.approx(sum(map(abs, terms)) / len(terms), abs=1e-12)
    loss.backward()
    assert y.grad is None
    assert q.grad is not None and (q.grad[~mask] == 0).all() and (q.grad[mask] != 0).all()
    assert torch.autograd.gradcheck(lambda x: q_loss(x, y, mask=mask).loss, (q,))


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.99])
def test_expectile_loss_equals_a_slow_loop(expectile: float) -> None:
    g = torch.Generator().manual_seed(2)
    v = torch.randn(N, generator=g, dtype=torch.float64, requires_grad=True)
    q = torch.randn(N, generator=g, dtype=torch.float64, requires_grad=True)
    loss, advantage = expectile_value_loss(v, q, expectile=expectile)
    total = 0.0
    for i in range(N):
        x = float(q[i]) - float(v[i])
        total += (expectile if x >= 0 else 1 - expectile) * x * x
    assert float(loss) == pytest.approx(total / N, abs=1e-12)
    assert float(advantage) == pytest.approx(float((q - v).mean()), abs=1e-12)
    loss.backward()
    assert q.grad is None
    assert torch.autograd.gradcheck(lambda x: expectile_value_loss(x, q, expectile=expectile).loss, (v,))


def test_expectile_one_half_is_half_the_squared_error() -> None:
    v, q = torch.randn(N, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    assert torch.allclose(expectile_value_loss(v, q, expectile=0.5).loss, 0.5 * (q - v).square().mean())


@pytest.mark.parametrize(("expectile", "expected"), [(0.5, 0.5), (0.999, 1.0), (0.001, 0.0)])
def test_the_expectile_points_from_the_mean_to_the_largest(expectile: float, expected: float) -> None:
    """The minimiser over v for Q values 0 and 1 in equal parts."""
    v = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.0, 1.0], dtype=torch.float64)
    optimizer = torch.optim.SGD([v], lr=1.0)
    for _ in range(5000):
        optimizer.zero_grad()
        expectile_value_loss(v.expand(2), q, expectile=expectile).loss.backward()
        optimizer.step()
    assert float(v) == pytest.approx(expected, abs=2e-3)


def test_parts_add_up_to_the_whole() -> None:
    g = torch.Generator().manual_seed(3)
    v, q = torch.randn(N, generator=g).double(), torch.randn(N, generator=g).double()
    for loss in (lambda a, b, n: q_loss(a, b, normalizer=n).loss,
                 lambda a, b, n: expectile_value_loss(a, b, expectile=0.7, normalizer=n).loss):  # fmt: skip
        parts = sum(loss(v[i : i + 3], q[i : i + 3], N) for i in range(0, N, 3))
        assert torch.allclose(parts, loss(v, q, None))


def test_targets_follow_by_their_rate() -> None:
    source = [torch.ones(2, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)]
    target = [torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]
    for step in range(1, 4):
        polyak_update(target, source, rate=0.2)
        assert torch.allclose(target[1], torch.full((3,), 2 * (1 - 0.8**step), dtype=torch.float64))
    polyak_update(target, source, rate=1.0)
    assert torch.equal(target[0], source[0])
    with pytest.raises(ValueError, match="rate must be in"):
        polyak_update(target, source, rate=1.5)
    with pytest.raises(ValueError):
        polyak_update(target[:1], source, rate=0.5)


def test_returns_of_several_trajectories() -> None:
    rewards = torch.tensor([1.0, 2.0, 4.0, 0.0, 8.0, 1.0], dtype=torch.float64)
    terminated = torch.tensor([0, 1, 0, 1, 0, 0]).bool()
    last = torch.tensor([0, 0, 0, 1, 0, 1]).bool()  # two trajectories; the first has two ends, the second none
    returns, known = discounted_returns(rewards, terminated, last, discount=0.5)
    assert returns.tolist() == [2.0, 2.0, 4.0, 0.0, 8.5, 1.0]
    assert known.tolist() == [True, True, True, True, False, False]
    steps = torch.tensor([2, 1, 1, 1, 1, 1])
    longer, _ = discounted_returns(rewards, terminated, last, discount=0.5, steps=steps)
    assert longer[0] == 1.0 + 0.25 * 2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: td_target(x, x[:2], x, discount=0.9), "next_values must have the shape"),
        (lambda x: td_target(x, x, x, discount=1.1), "discount must be in"),
        (lambda x: td_target(x, x, x, discount=0.9, steps=x[:1]), "steps must have the shape"),
        (lambda x: discounted_returns(x, x[:2], x, discount=0.9), "terminated must have the shape"),
        (lambda x: discounted_returns(x, x, x[:2], discount=0.9), "last must have the shape"),
        (lambda x: q_loss(x[None], x), "q_values must have 1"),
        (lambda x: q_loss(x, x, mask=x[:1]), "mask must have the shape"),
        (lambda x: expectile_value_loss(x, x, expectile=1.0), "expectile must be in"),
        (lambda x: expectile_value_loss(x, x[:1], expectile=0.5), "target_q_values must have the shape"),
    ],
)
def test_wrong_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3))
