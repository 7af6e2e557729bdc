"""Prefix-RFT's loss: against a slow loop in float64, its knobs, and the parts of a batch that it refuses."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_rft.losses import PrefixRFT
from lit_rft.losses.prefix_rft import top_entropy_mask
from lit_rft.rollouts import Normalizer, RolloutBatch

B, T = 5, 6
LENGTHS = [6, 2, 6, 5, 4]
PREFIXES = [0, 0, 4, 5, 0]  # tokens of a trace at the head: of a continued one, of one that is not, and of an empty one
OFF = [False, False, True, True, True]
NAN = math.nan


def make_batch() -> tuple[Tensor, RolloutBatch]:
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(B, T, generator=generator, dtype=torch.float64)

    log_probs = -2 * torch.rand(B, T, generator=generator, dtype=torch.float64) - 0.05
    places, off = torch.arange(T), torch.tensor(OFF)
    prefix = places < torch.tensor(PREFIXES)[:, None]
    behaviour = torch.where(prefix | ~off[:, None], NAN, log_probs + 0.3 * noise())
    batch = RolloutBatch(
        places < torch.tensor(LENGTHS)[:, None], off, torch.tensor([1.0, -0.5, 0.7, -0.4, -1.2], dtype=torch.float64),
        old_log_probs=(log_probs + 0.3 * noise()).masked_fill(off[:, None], 0.0),  # of on-policy rollouts only
        behaviour_log_probs=behaviour, entropy=noise().abs(),
    )  # fmt: skip
    return log_probs, batch


def normalizer(batch: RolloutBatch) -> Normalizer:
    return Normalizer(batch.mask.sum(), torch.tensor(B), 7)


def chosen_tokens(batch: RolloutBatch, row: int, share: float) -> list[int]:
    assert batch.entropy is not None
    order = sorted(range(PREFIXES[row]), key=lambda t: -float(batch.entropy[row, t]))  # type: ignore[index]
    return order[: math.ceil(share * PREFIXES[row])]


def slow_loss(log_probs: Tensor, batch: RolloutBatch, share: float, low: float, high: float) -> float:
    assert batch.old_log_probs is not None and batch.behaviour_log_probs is not None
    total = 0.0
    for row in range(B):
        advantage, chosen = float(batch.advantages[row]), chosen_tokens(batch, row, share)
        for t in range(LENGTHS[row]):
            if t < PREFIXES[row]:
                total -= advantage if t in chosen else 0.0
                continue
            old = batch.behaviour_log_probs if OFF[row] else batch.old_log_probs
            ratio = math.exp(float(log_probs[row, t] - old[row, t]))
            total -= min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return total / sum(LENGTHS)


@pytest.mark.parametrize(("share", "low", "high"), [(0.2, 0.2, 0.2), (0.5, 0.2, 0.3), (1.0, 0.1, 0.2), (0.0, 0.2, 0.2)])
def test_the_loss_equals_a_slow_loop(share: float, low: float, high: float) -> None:
    log_probs, batch = make_batch()
    loss, sums = PrefixRFT(share, low, high)(log_probs, batch, normalizer=normalizer(batch))
    assert float(loss) == pytest.approx(slow_loss(log_probs, batch, share, low, high), rel=1e-12)
    trained, number = sums["prefix_trained_fraction"].tolist()
    assert (trained, number) == (sum(len(chosen_tokens(batch, row, share)) for row in range(B)), sum(PREFIXES))
    probability = sum(float(log_probs[row, t].exp()) for row in range(B) for t in range(PREFIXES[row]))
    assert sums["trace_prob_mean"].tolist() == pytest.approx([probability, sum(PREFIXES)])
    assert sums["clip_fraction"][1] == sum(LENGTHS) - sum(PREFIXES)


def test_only_uncertain_tokens_of_a_prefix_have_a_gradient() -> None:
    log_probs, batch = make_batch()
    x = log_probs.clone().requires_grad_()
    loss, _ = PrefixRFT(0.5, None, None)(x, batch, normalizer=normalizer(batch))
    (gradient,) = torch.autograd.grad(loss, x)
    for row in (2, 3):
        chosen = chosen_tokens(batch, row, 0.5)
        expected = [-float(batch.advantages[row]) / sum(LENGTHS) * (t in chosen) for t in range(PREFIXES[row])]
        assert gradient[row, : PREFIXES[row]].tolist() == pytest.approx(expected)
    assert (gradient[~batch.mask] == 0).all() and (gradient[2, 4:6] != 0).all() and gradient.isfinite().all()


def test_losses_and_diagnostics_add_up_over_micro_batches() -> None:
    log_probs, batch = make_batch()
    full, sums = PrefixRFT(0.4)(log_probs, batch, normalizer=normalizer(batch))
    parts = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 5)):
        part = RolloutBatch(*(None if value is None else value[rows] for value in vars(batch).values()))
        parts.append(PrefixRFT(0.4)(log_probs[rows], part, normalizer=normalizer(batch)))
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).sum(), full)
    for name, value in sums.items():
        torch.testing.assert_close(torch.stack([part[1][name] for part in parts]).sum(0), value)


@pytest.mark.parametrize("knob", [{"prefix_share": 0.6}, {"clip_low": 0.02}, {"clip_high": 0.02}])
def test_every_knob_changes_the_result(knob: dict[str, Any]) -> None:
    log_probs, batch = make_batch()
    values = [
        float(loss(log_probs, batch, normalizer=normalizer(batch))[0]) for loss in (PrefixRFT(), PrefixRFT(**knob))
    ]
    assert abs(values[0] - values[1]) > 1e-4


def test_without_prefixes_it_is_the_clipped_loss() -> None:
    log_probs, batch = make_batch()
    batch = dataclasses.replace(batch, off_policy=torch.zeros(B, dtype=torch.bool), behaviour_log_probs=None)
    batch.old_log_probs = None
    x = log_probs.clone().requires_grad_()
    loss, sums = PrefixRFT()(x, batch, normalizer=normalizer(batch))
    (gradient,) = torch.autograd.grad(loss, x)
    expected = torch.where(batch.mask, -batch.advantages[:, None] / batch.mask.sum(), 0.0)
    torch.testing.assert_close(gradient, expected)
    assert sums["prefix_trained_fraction"].tolist() == [0, 0]


@pytest.mark.parametrize(("share", "counts"), [(0.2, [1, 1, 0]), (0.25, [2, 1, 0]), (0.0, [0, 0, 0]), (1.0, [5, 1, 0])])
def test_shares_of_a_row_are_rounded_up(share: float, counts: list[int]) -> None:
    entropy = torch.tensor([[1.0, 5.0, 2.0, 4.0, 3.0, 9.0]] * 3)
    mask = torch.arange(6) < torch.tensor([[5], [1], [0]])
    found = top_entropy_mask(entropy, mask, share=share)
    assert found.sum(1).tolist() == counts and not (found & ~mask).any()
    assert found[0].tolist() == [n in torch.tensor([1, 3, 4, 2, 0])[: counts[0]].tolist() for n in range(6)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrefixRFT(1.5), r"loss.prefix_share must be in \[0, 1\], got 1.5"),
        (lambda: PrefixRFT(clip_low=-0.1), "loss.clip_low must be >= 0"),
        (lambda: PrefixRFT(clip_high=-0.1), "loss.clip_high must be >= 0"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
    log_probs, batch = make_batch()
    batch.entropy = None
    with pytest.raises(ValueError, match="PrefixRFT needs entropies"):
        PrefixRFT()(log_probs, batch, normalizer=normalizer(batch))
