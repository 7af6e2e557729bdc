"""LUFFY's loss: against figures of the public release, a slow loop, and properties."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rft.objectives import (
    clipped_surrogate,
    kl_estimate,
    masked_token_mean,
    mixed_policy_loss,
    off_policy_losses,
    shape_policy,
    truncated_importance_weights,
)

REFERENCE = Path(__file__).parents[1] / "reference"
B, T = 5, 6


def batch(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([6, 3, 1, 4, 5])
    return {
        "log_probs": -2 * torch.rand(B, T, generator=g, dtype=torch.float64),
        "advantages": torch.randn(B, generator=g, dtype=torch.float64),
        "completion_mask": torch.arange(T) < lengths[:, None],
        "off_policy_mask": torch.tensor([False, True, False, False, True]),
        "old_log_probs": -2 * torch.rand(B, T, generator=g, dtype=torch.float64),
        "behaviour_log_probs": -2 * torch.rand(B, T, generator=g, dtype=torch.float64),
    }


def slow(data: dict[str, Tensor], gamma: float | None, low: float | None, high: float | None, z: float) -> float:
    total = 0.0
    for b in range(B):
        a = float(data["advantages"][b])
        for t in range(T):
            if not data["completion_mask"][b, t]:
                continue
            lp = float(data["log_probs"][b, t])
            if data["off_policy_mask"][b]:
                x = math.exp(lp - float(data["behaviour_log_probs"][b, t]))
                total -= (x if gamma is None else x / (x + gamma)) * a
            else:
                r = math.exp(lp - float(data["old_log_probs"][b, t]))
                inside = max(r, 1 - low) if low is not None else r
                inside = min(inside, 1 + high) if high is not None else inside
                total -= min(r * a, inside * a)
    return total / z


@pytest.mark.parametrize("gamma", [None, 0.1, 0.5])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.3), (None, 0.2), (0.1, None), (None, None)])
def test_the_loss_equals_a_slow_loop(gamma: float | None, low: float | None, high: float | None) -> None:
    data = batch()
    for z in (None, 100.0):
        found = mixed_policy_loss(**data, policy_shaping=gamma, clip_low=low, clip_high=high, normalizer=z)
        tokens = float(data["completion_mask"].sum())
        assert float(found.loss) == pytest.approx(slow(data, gamma, low, high, z or tokens), abs=1e-12)


def test_gradients() -> None:
    data = batch()
    log_probs = data.pop("log_probs").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mixed_policy_loss(x, **data).loss, (log_probs,))
    mixed_policy_loss(log_probs, **data).loss.backward()
    assert log_probs.grad is not None and (log_probs.grad[~data["completion_mask"]] == 0).all()


def test_without_old_log_probs_it_is_reinforce() -> None:
    """The ratio is 1 and its gradient that of the log-probability."""
    data = batch()
    log_probs = data["log_probs"].requires_grad_()
    on = data["completion_mask"] & ~data["off_policy_mask"][:, None]
    found = mixed_policy_loss(log_probs, data["advantages"], on, data["off_policy_mask"], clip_low=0.2, clip_high=0.2)
    (gradient,) = torch.autograd.grad(found.loss, log_probs)
    expected = torch.where(on, -data["advantages"][:, None] / on.sum(), 0.0)
    torch.testing.assert_close(gradient, expected.expand_as(gradient))
    assert found.clip_fraction == 0


def test_shaping_lifts_unlikely_tokens() -> None:
    x = torch.tensor([0.01, 0.1, 0.9], dtype=torch.float64, requires_grad=True)
    y = shape_policy(x, policy_shaping=0.1)
    torch.testing.assert_close(y, x / (x + 0.1))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, 0.1 / (x.detach() + 0.1) ** 2)
    log_probs = torch.tensor([[-5.0, -0.05]], dtype=torch.float64, requires_grad=True)
    pull = {}
    for gamma in (None, 0.1):
        loss = off_policy_losses(log_probs, torch.ones(1, 2), policy_shaping=gamma).sum()
        (gradient,) = torch.autograd.grad(loss, log_probs)
        pull[gamma] = float(gradient[0, 0] / gradient[0, 1])
    assert pull[0.1] > 0.5 > 0.01 > pull[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shaping_stays_finite_where_the_ratio_overflows(dtype: torch.dtype) -> None:
    log_probs = torch.tensor([[-0.1, -800.0]], dtype=dtype, requires_grad=True)
    behaviour = torch.tensor([[-900.0, -0.1]], dtype=dtype)
    losses = off_policy_losses(log_probs, torch.ones(1, 2), behaviour_log_probs=behaviour, policy_shaping=0.1)
    assert losses.tolist() == [[-1.0, 0.0]]
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    assert gradient.tolist() == [[0.0, 0.0]]


def test_behaviour_probabilities_count_where_they_are_known() -> None:
    data = batch()
    known = mixed_policy_loss(**data).loss
    some = {**data, "behaviour_log_probs": data["behaviour_log_probs"].masked_fill(torch.eye(B, T).bool(), math.nan)}
    none = {**data, "behaviour_log_probs": None}
    values = [float(known), float(mixed_policy_loss(**some).loss), float(mixed_policy_loss(**none).loss)]
    assert len(set(values)) == 3 and all(map(math.isfinite, values))
    ones = {**data, "behaviour_log_probs": torch.zeros(B, T, dtype=torch.float64)}
    assert torch.equal(mixed_policy_loss(**ones).loss, mixed_policy_loss(**none).loss)


def test_padding_changes_nothing_nan_included() -> None:
    data = batch()
    base = mixed_policy_loss(**data)
    dirty = dict(data)
    for name in ("log_probs", "old_log_probs", "behaviour_log_probs"):
        dirty[name] = data[name].masked_fill(~data["completion_mask"], math.nan)
    torch.testing.assert_close(mixed_policy_loss(**dirty), base)
    log_probs = dirty["log_probs"].clone().requires_grad_()
    mixed_policy_loss(**{**dirty, "log_probs": log_probs}).loss.backward()
    assert torch.isfinite(log_probs.grad).all()  # type: ignore[arg-type]


def test_rows_and_micro_batches_add_up() -> None:
    data = batch()
    tokens = float(data["completion_mask"].sum())
    whole = mixed_policy_loss(**data).loss
    parts = [mixed_policy_loss(**{k: v[i : i + 2] for k, v in data.items()}, normalizer=tokens).loss for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), whole)


def test_zero_advantage_gives_zero_gradient() -> None:
    data = batch()
    log_probs = data["log_probs"].requires_grad_()
    mixed_policy_loss(**{**data, "advantages": torch.zeros(B, dtype=torch.float64)}).loss.backward()
    assert log_probs.grad is not None and (log_probs.grad == 0).all()


@pytest.mark.parametrize(
    "knob",
    [
        {"policy_shaping": None},
        {"policy_shaping": 0.3},
        {"clip_low": 0.01},
        {"clip_high": 0.01},
        {"normalizer": 3.0},
        {"token_weights": torch.full((B, T), 0.5, dtype=torch.float64)},
        {"behaviour_log_probs": None},
        {"old_log_probs": None},
    ],
    ids=lambda knob: next(iter(knob)),
)
def test_every_knob_changes_the_result(knob: dict[str, Any]) -> None:
    data = batch(2)
    assert not torch.allclose(mixed_policy_loss(**data).loss, mixed_policy_loss(**{**data, **knob}).loss)


def test_diagnostics() -> None:
    data = batch()
    found = mixed_policy_loss(**data)
    off = data["completion_mask"] & data["off_policy_mask"][:, None]
    on = data["completion_mask"] & ~data["off_policy_mask"][:, None]
    torch.testing.assert_close(found.trace_prob_mean, data["log_probs"].exp()[off].mean())
    clipped = clipped_surrogate(
        data["log_probs"], data["old_log_probs"], data["advantages"][:, None].expand(B, T)
    ).clipped
    torch.testing.assert_close(found.clip_fraction, clipped[on].double().mean())
    assert 0 < found.clip_fraction < 1
    assert not any(value.requires_grad for value in found[1:])


def test_truncated_importance_weights() -> None:
    log_probs, sampler = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-1.0, -1.5, -9.0]])
    found = truncated_importance_weights(log_probs, sampler, max_weight=2.0)
    torch.testing.assert_close(found, torch.tensor([[1.0, math.exp(0.5), 2.0]]))
    with pytest.raises(ValueError, match="max_weight"):
        truncated_importance_weights(log_probs, sampler, max_weight=0)


def test_kl_estimate_is_an_unbiased_estimate_and_never_negative() -> None:
    g = torch.Generator().manual_seed(0)
    logits, ref_logits = torch.randn(2, 6, generator=g, dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    terms = kl_estimate(log_p, log_q)
    assert (terms >= 0).all()
    torch.testing.assert_close((log_p.exp() * terms).sum(), (log_p.exp() * (log_p - log_q)).sum())
    assert torch.equal(kl_estimate(log_p, log_p), torch.zeros(6, dtype=torch.float64))


def test_masked_token_mean() -> None:
    values, mask = torch.tensor([[1.0, 3.0], [math.nan, 5.0]]), torch.tensor([[1, 1], [0, 1]])
    assert masked_token_mean(values, mask) == 3.0
    assert masked_token_mean(values, mask, normalizer=9.0) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion_mask": torch.ones(B, T - 1)}, "completion_mask must have the shape"),
        ({"advantages": torch.ones(B, T - 1)}, "advantages must have the shape"),
        ({"off_policy_mask": torch.ones(B - 1)}, "must have the shape of off_policy_mask"),
        ({"log_probs": torch.ones(B, T, 1)}, "log_probs must have 2"),
        ({"policy_shaping": 0.0}, "policy_shaping must be > 0"),
        ({"clip_low": -0.1}, "clip_low must be >= 0"),
        ({"token_weights": torch.ones(1)}, "token_weights must have the shape"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixed_policy_loss(**{**batch(), **change})


def test_the_releases_losses_and_gradients_are_reproduced() -> None:
    import numpy as np

    arrays = np.load(REFERENCE / "luffy_loss.npz")
    cases: list[dict[str, Any]] = json.loads((REFERENCE / "luffy_loss.json").read_text())
    for case in cases:
        data = {
            name.split("/")[1]: torch.tensor(arrays[name]) for name in arrays if name.startswith(f"{case['case']}/")
        }
        log_probs = data["log_probs"].requires_grad_()
        clip = case["clip_range"] if case["clip"] else None
        found = mixed_policy_loss(
            log_probs,
            data["advantages"],
            data["response_mask"],
            data["off_policy_mask"],
            old_log_probs=data["old_log_probs"],
            policy_shaping=case["policy_shaping"],
            clip_low=clip,
            clip_high=clip,
            normalizer=float(log_probs.shape[1]) if case["normalisation"] == "sum_over_max_length" else None,
        )
        found.loss.backward()
        for name in ("loss", "on_policy_loss", "off_policy_loss"):
            assert float(getattr(found, name)) == pytest.approx(case[name], abs=1e-9), case["case"]
        torch.testing.assert_close(log_probs.grad, data["grad_log_probs"], rtol=0, atol=1e-9, msg=case["case"])
    assert len(cases) == 16
