"""Intervals of shares and of gains: published values, and coverage by counting."""

import math
import random

import pytest

from lit_rft.demo.intervals import gain_interval
from lit_rft.metrics import wilson_interval


def _outcomes(both: int, lost: int, gained: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * lost + [(False, True)] * gained + [(False, False)] * neither
    return [first for first, _ in pairs], [second for _, second in pairs]


@pytest.mark.parametrize(
    ("successes", "number", "expected"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_intervals_of_shares_are_those_of_newcombe(successes: int, number: int, expected: tuple[float, float]) -> None:
    """Table I of Newcombe, Statistics in Medicine 17 (1998), 857-872, method 3."""
    assert wilson_interval(successes, number) == pytest.approx(expected, abs=5e-5)


def test_mirrored_outcomes_have_mirrored_intervals() -> None:
    low, high = wilson_interval(7, 48)
    assert wilson_interval(41, 48) == pytest.approx((1 - high, 1 - low))
    before, after = _outcomes(3, 2, 30, 13)
    low, high = gain_interval(before, after)
    assert gain_interval(after, before) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("successes", "number"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(successes: int, number: int) -> None:
    with pytest.raises(ValueError, match="0 <= successes <= number"):
        wilson_interval(successes, number)


def test_different_games_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        gain_interval([True], [True, False])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((1, 1, 7, 3), (0.0758, 0.7446)),  # 2 of 12 before, 8 of 12 after, correlation -4 / sqrt(2 * 10 * 8 * 4)
        ((36, 2, 12, 0), (0.0569, 0.3404)),
        ((0, 0, 30, 0), (0.8395, 1.0)),  # 1 - sqrt(2) times the width of Wilson's interval of 30 of 30
        ((54, 0, 0, 0), (-0.0664, 0.0664)),
    ],
)
def test_gains_by_hand(counts: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    before, after = _outcomes(*counts)
    assert gain_interval(before, after) == pytest.approx(expected, abs=1e-4)


def test_correlated_outcomes_have_a_narrower_interval() -> None:
    """20 of 40 solved before and 20 after: the same ones, independent ones, or the others."""
    widths = []
    for both in (20, 10, 0):
        low, high = gain_interval(*_outcomes(both, 20 - both, 20 - both, both))
        assert low == pytest.approx(-high)
        widths.append(high - low)
    assert widths[0] < widths[1] < widths[2]


def test_the_interval_of_a_gain_covers_the_truth() -> None:
    """4,000 draws of 48 games that are solved with probability 0.05 before and 0.7 after, with a correlation."""
    rng, covered, draws = random.Random(0), 0, 4000
    for _ in range(draws):
        ease = [rng.random() for _ in range(48)]
        before, after = [u < 0.05 for u in ease], [(u + 0.3 * rng.random()) % 1 < 0.7 for u in ease]
        low, high = gain_interval(before, after)
        covered += low <= 0.65 <= high
    error = math.sqrt(0.95 * 0.05 / draws)
    assert 0.95 - 4 * error < covered / draws < 0.99
