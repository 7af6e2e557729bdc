"""Generalised advantages and the clipped value loss, against slow sums and properties."""

import math

import pytest
import torch
from torch import Tensor

from lit_rft.objectives import clipped_value_loss, discounted_returns, generalized_advantages, moments, whitened

LENGTHS = (4, 1, 3)
N = sum(LENGTHS)


def chain(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    last = torch.zeros(N, dtype=torch.bool)
    last[[3, 4, 7]] = True
    return {
        "rewards": torch.randn(N, generator=g, dtype=torch.float64),
        "values": torch.randn(N, generator=g, dtype=torch.float64),
        "last": last,
        "final_values": torch.tensor([9.0] * 3 + [0.0, 0.7] + [9.0] * 2 + [-0.4], dtype=torch.float64),
        "steps": torch.tensor([0, 1, 0, 2, 1, 0, 0, 3]),
    }


def slow(data: dict[str, Tensor], discount: float, lam: float, start: int, end: int) -> list[float]:
    """The definition: A_k = sum over n of (g lambda)^n delta_{k+n}."""
    reward, value = data["rewards"].tolist(), data["values"].tolist()
    factor = [discount**passed for passed in data["steps"].tolist()]
    advantages = []
    for k in range(start, end):
        total, weight = 0.0, 1.0
        for j in range(k, end):
            following = value[j + 1] if j + 1 < end else float(data["final_values"][j])
            total += weight * (reward[j] + factor[j] * following - value[j])
            weight *= factor[j] * lam
        advantages.append(total)
    return advantages


@pytest.mark.parametrize(("discount", "lam"), [(0.9, 0.95), (1.0, 0.5), (0.7, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_advantages_equal_the_sum_of_errors(discount: float, lam: float) -> None:
    data, expected, start = chain(), [], 0
    for length in LENGTHS:
        expected += slow(data, discount, lam, start, start + length)
        start += length
    found = generalized_advantages(**data, discount=discount, gae_lambda=lam)
    assert found.advantages.tolist() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(found.returns, found.advantages + data["values"])


def test_lambda_one_is_the_return_and_lambda_zero_the_error_of_one_step() -> None:
    data = chain()
    rewards, values, last = data["rewards"], data["values"], data["last"]
    returns, known = discounted_returns(rewards, last, last, discount=0.9)
    assert known.all()
    found = generalized_advantages(rewards, values, last, discount=0.9, gae_lambda=1.0)
    torch.testing.assert_close(found.returns, returns)
    following = torch.where(last, 0.0, values.roll(-1))
    one_step = generalized_advantages(rewards, values, last, discount=0.9, gae_lambda=0.0)
    torch.testing.assert_close(one_step.advantages, rewards + 0.9 * following - values)


def test_a_perfect_value_has_no_advantage() -> None:
    data = chain()
    returns, _ = discounted_returns(data["rewards"], data["last"], data["last"], discount=0.9)
    found = generalized_advantages(data["rewards"], returns, data["last"], discount=0.9, gae_lambda=0.95)
    assert found.advantages.abs().max() < 1e-12


def test_tokens_of_an_utterance_share_its_time() -> None:
    """Splitting an action into more tokens, of equal value and without reward, changes nothing at its beginning."""
    one = {"rewards": torch.tensor([1.0, 2.0]), "values": torch.tensor([0.5, 0.2]), "last": torch.tensor([0, 1]).bool()}
    split = {
        "rewards": torch.tensor([0.0, 0.0, 1.0, 2.0]),
        "values": torch.tensor([0.5, 0.5, 0.5, 0.2]),
        "last": torch.tensor([0, 0, 0, 1]).bool(),
        "steps": torch.tensor([0, 0, 1, 1]),
    }
    whole = generalized_advantages(**one, discount=0.8, gae_lambda=1.0).advantages
    parts = generalized_advantages(**split, discount=0.8, gae_lambda=1.0).advantages
    torch.testing.assert_close(parts[[0, 3]], whole)


def test_final_values_count_at_the_end_alone_and_nothing_has_a_gradient() -> None:
    data = chain()
    base = generalized_advantages(**data, discount=0.9, gae_lambda=0.9)
    inner = {**data, "final_values": torch.where(data["last"], data["final_values"], math.nan)}
    torch.testing.assert_close(generalized_advantages(**inner, discount=0.9, gae_lambda=0.9), base)
    cut = {**data, "final_values": data["final_values"] + data["last"].double()}
    changed = generalized_advantages(**cut, discount=0.9, gae_lambda=0.9).advantages != base.advantages
    assert changed.all()
    values = data["values"].clone().requires_grad_()
    found = generalized_advantages(**{**data, "values": values}, discount=0.9, gae_lambda=0.9)
    assert not found.advantages.requires_grad and not found.returns.requires_grad


def test_what_is_refused() -> None:
    data = chain()
    for change, message in (
        ({"discount": 1.1}, "discount must be in"),
        ({"gae_lambda": -0.1}, "gae_lambda must be in"),
        ({"values": data["values"][:-1]}, "values must have the shape of rewards"),
        ({"steps": data["steps"][:-1]}, "steps must have the shape of rewards"),
        ({"last": torch.zeros(N, dtype=torch.bool)}, "last must be true on the last decision"),
    ):
        with pytest.raises(ValueError, match=message):
            generalized_advantages(**{**data, "discount": 0.9, "gae_lambda": 0.9, **change})


def test_whitening_is_over_all_shares_of_a_batch() -> None:
    values = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 5
    sums = moments(values[:7]) + moments(values[7:])
    found = torch.cat([whitened(values[:7], sums), whitened(values[7:], sums)])
    assert float(found.mean()) == pytest.approx(0, abs=1e-9) and float(found.std(unbiased=False)) == pytest.approx(1)
    for dtype in (torch.float32, torch.float64):
        equal = torch.full((6,), 0.1, dtype=dtype)
        assert whitened(equal, moments(equal)).abs().max() < 1e-6
    assert whitened(torch.zeros(0), moments(torch.zeros(0))).shape == (0,)


@pytest.mark.parametrize("spread", [1e-3, 1e3])
def test_whitening_does_not_depend_on_the_scale(spread: float) -> None:
    values = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        whitened(spread * values, moments(spread * values)), whitened(values, moments(values)), rtol=1e-4, atol=1e-4
    )


def test_a_spread_is_noise_only_where_rounding_can_make_it() -> None:
    """In float32 the variance of a constant has an error of about 1e-7 of its square, and counts as 0 up to 6e-6."""
    offsets = torch.tensor([-1.0, 1.0])
    for relative, is_noise in ((1e-3, True), (4e-3, False)):  # of the standard deviation, in units of the mean
        values = 100 * (1 + relative * offsets)
        expected = 100 * relative * offsets if is_noise else offsets
        torch.testing.assert_close(whitened(values, moments(values)), expected, rtol=1e-2, atol=1e-4)


def test_the_value_loss_equals_a_slow_loop() -> None:
    g = torch.Generator().manual_seed(2)
    values, old, returns = (torch.randn(N, generator=g, dtype=torch.float64) for _ in range(3))
    for clip in (0.2, 1.0, None):
        total, decided = 0.0, 0
        for v, o, r in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True):
            plain = (v - r) ** 2
            bounded = plain if clip is None else (max(min(v, o + clip), o - clip) - r) ** 2
            total, decided = total + max(plain, bounded), decided + (bounded > plain)
        found = clipped_value_loss(values, old, returns, clip=clip, normalizer=10)
        assert float(found.loss) == pytest.approx(total / 20, abs=1e-12)
        assert float(found.clip_fraction) == pytest.approx(decided / N)
        default = clipped_value_loss(values, old, returns, clip=clip).loss
        torch.testing.assert_close(default * N, found.loss * 10)
    x = values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: clipped_value_loss(y, old, returns, clip=0.3).loss, (x,))


def test_a_clipped_value_moves_no_further() -> None:
    value = torch.tensor([1.0], requires_grad=True)
    clipped_value_loss(value, torch.tensor([0.0]), torch.tensor([0.5]), clip=0.2).loss.backward()
    assert value.grad is not None and value.grad.item() == pytest.approx(0.5)  # away from the return: pulled back
    value = torch.tensor([0.4], requires_grad=True)
    clipped_value_loss(value, torch.tensor([0.0]), torch.tensor([0.5]), clip=0.2).loss.backward()
    assert value.grad is not None and value.grad.item() == 0.0  # already 0.4 towards it
    with pytest.raises(ValueError, match="clip must be > 0 or None, got 0"):
        clipped_value_loss(value, value, value, clip=0)
