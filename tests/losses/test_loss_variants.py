"""Named policy losses: against slow loops in float64, gradients, knobs, and training on the tiny model."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rft.losses import (
    CISPO,
    GSPO,
    MaskedWeights,
    SamplerCorrected,
    SequenceWeights,
    TruncatedWeights,
    TwoSidedClip,
)
from lit_rft.losses.cispo import clipped_weight_losses
from lit_rft.losses.gspo import sequence_ratio_losses
from lit_rft.losses.two_sided import two_sided_losses
from lit_rft.rollouts import MixedPolicyLoss, Normalizer, RolloutBatch

B, T = 5, 6


def make_batch(seed: int = 0) -> tuple[Tensor, RolloutBatch]:
    """Ratios between about 0.3 and 3, advantages of both signs, NaN in padding."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(T) < torch.tensor([6, 3, 1, 4, 5])[:, None]
    log_probs = (-2 * torch.rand(B, T, generator=g, dtype=torch.float64)).masked_fill(~mask, math.nan)
    old = log_probs + torch.randn(B, T, generator=g, dtype=torch.float64) * 0.6
    advantages = torch.randn(B, generator=g, dtype=torch.float64)
    batch = RolloutBatch(mask, torch.zeros(B, dtype=torch.bool), advantages, old_log_probs=old)
    batch.sampled_log_probs = old + torch.randn(B, T, generator=g, dtype=torch.float64) * 0.6
    return log_probs, batch


def normalizer(batch: RolloutBatch) -> Normalizer:
    return Normalizer(batch.mask.sum(), torch.tensor(B), 7)


def tokens(batch: RolloutBatch, row: int) -> range:
    return range(int(batch.mask[row].sum()))


def log_ratio(log_probs: Tensor, batch: RolloutBatch, row: int, t: int) -> float:
    assert batch.old_log_probs is not None
    return float(log_probs[row, t] - batch.old_log_probs[row, t])


def slow_gspo(log_probs: Tensor, batch: RolloutBatch, low: float, high: float) -> float:
    total = 0.0
    for row in range(B):
        advantage = float(batch.advantages[row])
        mean = sum(log_ratio(log_probs, batch, row, t) for t in tokens(batch, row)) / len(tokens(batch, row))
        ratio = math.exp(mean)
        total -= min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return total / B


def slow_cispo(log_probs: Tensor, batch: RolloutBatch, low: float | None, high: float) -> float:
    total = 0.0
    for row in range(B):
        for t in tokens(batch, row):
            ratio = min(math.exp(log_ratio(log_probs, batch, row, t)), 1 + high)
            ratio = ratio if low is None else max(ratio, 1 - low)
            total -= ratio * float(batch.advantages[row]) * float(log_probs[row, t])
    return total / int(batch.mask.sum())


def slow_two_sided(log_probs: Tensor, batch: RolloutBatch, low: float, high: float, most: float) -> float:
    total = 0.0
    for row in range(B):
        for t in tokens(batch, row):
            ratio, advantage = math.exp(log_ratio(log_probs, batch, row, t)), float(batch.advantages[row])
            total -= min(min(ratio, most) * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return total / int(batch.mask.sum())


@pytest.mark.parametrize(("low", "high"), [(3e-4, 4e-4), (0.1, 0.3), (0.0, 10.0)])
def test_gspo_equals_a_slow_loop(low: float, high: float) -> None:
    log_probs, batch = make_batch()
    loss, _ = GSPO(low, high)(log_probs, batch, normalizer=normalizer(batch))
    assert float(loss) == pytest.approx(slow_gspo(log_probs, batch, low, high), abs=1e-12)


@pytest.mark.parametrize(("low", "high"), [(None, 0.28), (0.2, 0.28), (0.0, 5.0)])
def test_cispo_equals_a_slow_loop(low: float | None, high: float) -> None:
    log_probs, batch = make_batch()
    loss, _ = CISPO(low, high)(log_probs, batch, normalizer=normalizer(batch))
    assert float(loss) == pytest.approx(slow_cispo(log_probs, batch, low, high), abs=1e-12)


@pytest.mark.parametrize(("low", "high", "most"), [(0.2, 0.2, 1.5), (0.1, 0.3, 2.0), (0.2, 0.2, 1e9)])
def test_two_sided_equals_a_slow_loop(low: float, high: float, most: float) -> None:
    log_probs, batch = make_batch()
    loss, _ = TwoSidedClip(low, high, most)(log_probs, batch, normalizer=normalizer(batch))
    assert float(loss) == pytest.approx(slow_two_sided(log_probs, batch, low, high, most), abs=1e-12)
    if most == 1e9:
        kept = dataclasses.replace(batch, sampled_log_probs=None)
        ppo, _ = MixedPolicyLoss(clip_low=low, clip_high=high)(log_probs, kept, normalizer=normalizer(batch))
        torch.testing.assert_close(loss, ppo)
    by_length, _ = TwoSidedClip(low, high, most, "max_length")(log_probs, batch, normalizer=normalizer(batch))
    torch.testing.assert_close(by_length * 7, loss * batch.mask.sum())


def test_gspos_gradient_is_that_of_the_sequence_form() -> None:
    log_probs, batch = make_batch()
    mask, advantages = batch.mask, batch.advantages
    grads = []
    for form in ("token", "sequence"):
        x = log_probs.nan_to_num(0.0).requires_grad_()
        assert batch.old_log_probs is not None
        old = batch.old_log_probs.nan_to_num(0.0)
        if form == "token":
            per_token = advantages[:, None].expand_as(x)
            losses, clipped = sequence_ratio_losses(x, old, per_token, mask, clip_low=0.1, clip_high=0.2)
            assert clipped.any() and not clipped.all()
        else:
            ratio = (((x - old) * mask).sum(1) / mask.sum(1)).exp()
            losses = torch.maximum(-ratio * advantages, -ratio.clamp(0.9, 1.2) * advantages)
        grads.append(torch.autograd.grad(losses.sum(), x)[0])
    torch.testing.assert_close(*grads)


def test_cispo_keeps_the_gradient_of_clipped_tokens_and_ppo_does_not() -> None:
    log_probs = torch.tensor([[-1.0, -0.5]], dtype=torch.float64, requires_grad=True)
    old, advantages, mask = log_probs.detach() - 1.0, torch.ones(1, 2).double(), torch.ones(1, 2, dtype=torch.bool)
    losses, clipped = clipped_weight_losses(log_probs, old, advantages, mask, clip_low=None, clip_high=0.28)
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    assert clipped.all() and gradient.tolist() == [[-1.28, -1.28]]
    losses, clipped = two_sided_losses(log_probs, old, advantages, mask, clip_low=0.2, clip_high=0.28, max_ratio=4.0)
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    assert clipped.all() and gradient.tolist() == [[0.0, 0.0]]


def test_the_second_bound_stops_the_gradient_of_likely_mistakes() -> None:
    log_probs = torch.tensor([[0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-2.0, -1.1]], dtype=torch.float64)  # ratios 7.4 and 1.1
    advantages, mask = -torch.ones(1, 2).double(), torch.ones(1, 2, dtype=torch.bool)
    losses, clipped = two_sided_losses(log_probs, old, advantages, mask, clip_low=0.2, clip_high=0.2, max_ratio=4.0)
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    assert clipped.tolist() == [[True, False]] and losses[0, 0] == 4.0
    assert gradient[0, 0] == 0 and float(gradient[0, 1]) == pytest.approx(math.exp(0.1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, o, a, m: sequence_ratio_losses(x, o, a, m, clip_low=0.1, clip_high=0.2)[0],
        lambda x, o, a, m: two_sided_losses(x, o, a, m, clip_low=0.1, clip_high=0.2, max_ratio=2.0)[0],
    ],
)
def test_padding_has_no_gradient_and_the_rest_is_right(function: Callable[..., Tensor]) -> None:
    log_probs, batch = make_batch()
    assert batch.old_log_probs is not None
    old, advantages = batch.old_log_probs, batch.advantages[:, None].expand(B, T)
    x = log_probs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x, old, advantages, batch.mask).sum(), x)
    assert (gradient[~batch.mask] == 0).all() and gradient[batch.mask].isfinite().all() and (gradient != 0).any()


def test_the_gradient_of_two_sided_is_that_of_finite_differences() -> None:
    log_probs, batch = make_batch()
    assert batch.old_log_probs is not None
    x, old, mask = log_probs[:1].clone().requires_grad_(), batch.old_log_probs[:1], batch.mask[:1]  # without padding
    advantages = batch.advantages[:1, None].expand(1, T)

    def losses(y: Tensor) -> Tensor:
        return two_sided_losses(y, old, advantages, mask, clip_low=0.1, clip_high=0.2, max_ratio=2.0)[0]

    assert torch.autograd.gradcheck(losses, (x,))


LOSSES: list[Any] = [
    GSPO(0.1, 0.2), CISPO(), TwoSidedClip(), TwoSidedClip(normalizer="max_length"), SamplerCorrected(),
    SamplerCorrected(GSPO(0.1, 0.2), SequenceWeights(1.5)), SamplerCorrected(CISPO(), MaskedWeights(0.8, 1.3)),
]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_losses_and_diagnostics_add_up_over_micro_batches(loss: Any) -> None:
    log_probs, batch = make_batch()
    whole, sums = loss(log_probs, batch, normalizer=normalizer(batch))
    parts = []
    for rows in (slice(0, 1), slice(1, 4), slice(4, 5)):
        part = RolloutBatch(*(None if value is None else value[rows] for value in vars(batch).values()))
        parts.append(loss(log_probs[rows], part, normalizer=normalizer(batch)))
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).sum(), whole)
    for name, value in sums.items():
        torch.testing.assert_close(torch.stack([part[1][name] for part in parts]).sum(0), value)


@pytest.mark.parametrize("loss", [GSPO(0.1, 0.2), CISPO(), TwoSidedClip()], ids=lambda loss: type(loss).__name__)
def test_traces_are_refused_where_they_count(loss: Any) -> None:
    log_probs, batch = make_batch()
    batch.off_policy[1] = True
    with pytest.raises(ValueError, match=f"{type(loss).__name__} has no term for traces.*traces_per_group"):
        loss(log_probs, batch, normalizer=normalizer(batch))
    batch.mask[1] = False  # only imitated
    assert loss(log_probs, batch, normalizer=normalizer(batch))[0].isfinite()


@pytest.mark.parametrize("loss", [GSPO(0.1, 0.2), CISPO(), TwoSidedClip()], ids=lambda loss: type(loss).__name__)
def test_advantages_may_be_given_per_token(loss: Any) -> None:
    log_probs, batch = make_batch()
    per_token = dataclasses.replace(batch, advantages=batch.advantages[:, None].expand(B, T))
    expected = loss(log_probs, batch, normalizer=normalizer(batch))[0]
    torch.testing.assert_close(loss(log_probs, per_token, normalizer=normalizer(batch))[0], expected)


@pytest.mark.parametrize("loss", [GSPO(), CISPO(), TwoSidedClip()], ids=lambda loss: type(loss).__name__)
def test_the_first_update_needs_no_old_log_probs(loss: Any) -> None:
    """The ratio is 1: REINFORCE's gradient, each token's divided as the loss divides."""
    log_probs, batch = make_batch()
    x = log_probs.clone().requires_grad_()
    value, _ = loss(x, dataclasses.replace(batch, old_log_probs=None), normalizer=normalizer(batch))
    (gradient,) = torch.autograd.grad(value, x)
    lengths = batch.mask.sum(1, keepdim=True)
    divisor = B * lengths if isinstance(loss, GSPO) else batch.mask.sum()
    torch.testing.assert_close(gradient, torch.where(batch.mask, -batch.advantages[:, None] / divisor, 0.0))


# --- the sampler's mismatch ------------------------------------------------------------------------------------------


def ratios(batch: RolloutBatch) -> list[list[float]]:
    assert batch.old_log_probs is not None and batch.sampled_log_probs is not None
    both = (batch.old_log_probs, batch.sampled_log_probs)
    return [[math.exp(float(both[0][row, t] - both[1][row, t])) for t in tokens(batch, row)] for row in range(B)]


@pytest.mark.parametrize(
    ("weights", "of_row"),
    [
        (TruncatedWeights(1.3), lambda row: [min(r, 1.3) for r in row]),
        (MaskedWeights(0.7, 1.5), lambda row: [r if 0.7 <= r <= 1.5 else 0.0 for r in row]),
        (SequenceWeights(1.2), lambda row: [min(math.prod(row), 1.2)] * len(row)),
        (SequenceWeights(1.2, drop=True), lambda row: [math.prod(row) if math.prod(row) <= 1.2 else 0.0] * len(row)),
    ],
    ids=["truncated", "masked", "sequence", "sequence-drop"],
)
def test_weights_equal_a_slow_loop_and_weight_any_loss(weights: Any, of_row: Callable[[list[float]], Any]) -> None:
    log_probs, batch = make_batch()
    expected = torch.zeros(B, T, dtype=torch.float64)
    for row, values in enumerate(ratios(batch)):
        expected[row, : len(values)] = torch.tensor(of_row(values), dtype=torch.float64)
    assert len(expected[batch.mask].unique()) > 2
    for loss in (MixedPolicyLoss(), CISPO(), TwoSidedClip()):
        found, sums = SamplerCorrected(loss, weights)(log_probs, batch, normalizer=normalizer(batch))
        weighted = dataclasses.replace(batch, advantages=batch.advantages[:, None] * expected)
        torch.testing.assert_close(found, loss(log_probs, weighted, normalizer=normalizer(batch))[0])
        total, count = sums["importance_weight"].tolist()
        assert count == int(batch.mask.sum()) and total == pytest.approx(float(expected.sum()), rel=1e-5)
        assert sums["importance_dropped"][0] == int((batch.mask & (expected == 0)).sum())


def test_traces_are_not_weighted() -> None:
    log_probs, batch = make_batch()
    batch.off_policy[:] = torch.tensor([False, True, False, False, True])
    loss = MixedPolicyLoss()
    full, sums = SamplerCorrected(loss, TruncatedWeights(1.3))(log_probs, batch, normalizer=normalizer(batch))
    capped, _ = MixedPolicyLoss(importance_cap=1.3)(log_probs, batch, normalizer=normalizer(batch))
    torch.testing.assert_close(full, capped)
    assert sums["importance_weight"][1] == int(batch.mask[~batch.off_policy].sum())
    unsampled = dataclasses.replace(batch, sampled_log_probs=None)
    with pytest.raises(ValueError, match="needs the log-probabilities that the sampler reported"):
        SamplerCorrected(loss)(log_probs, unsampled, normalizer=normalizer(batch))
    unsampled.off_policy[:] = True
    plain, _ = loss(log_probs, unsampled, normalizer=normalizer(batch))
    torch.testing.assert_close(SamplerCorrected(loss)(log_probs, unsampled, normalizer=normalizer(batch))[0], plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GSPO(clip_low=-0.1), "loss.clip_low must be >= 0"),
        (lambda: CISPO(clip_high=-1.0), "loss.clip_high must be >= 0"),
        (lambda: TwoSidedClip(clip_high=0.5, max_ratio=1.5), "loss.max_ratio must be > 1 . clip_high"),
        (lambda: TwoSidedClip(normalizer="rows"), "loss.normalizer must be tokens or max_length, got 'rows'"),  # type: ignore[arg-type]
        (lambda: TruncatedWeights(0.0), "max_weight must be > 0, got 0"),
        (lambda: SequenceWeights(math.nan), "max_weight must be > 0, got nan"),
        (lambda: MaskedWeights(2.0, 1.0), "below max_weight, got 2.0 and 1.0"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
