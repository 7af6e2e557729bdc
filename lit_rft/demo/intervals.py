"""95% interval of the difference between two shares of the same games."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_rft.metrics import wilson_interval


def gain_interval(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    """Return the interval of the change of a success rate over the same games.

    Method 10 of Newcombe (Statistics in Medicine 17, 1998, 2635-2650): Wilson's intervals of both rates, joined with
    the correlation of the paired outcomes. Deterministic, and sensible where no or every game changes, unlike a
    bootstrap.

    Args:
        before: success of each game.
        after: of the same games, in the same order.

    Returns:
        Lower and upper end of the rate after minus the rate before, in [-1, 1].

    Raises:
        ValueError: If the lengths differ, or there are no games.
    """
    if len(before) != len(after):
        raise ValueError(f"expected the same games before and after, got {len(before)} and {len(after)}")
    number = len(before)
    rate_1, rate_0 = sum(after) / number if number else 0.0, sum(before) / number if number else 0.0
    low_1, high_1 = wilson_interval(sum(after), number)
    low_0, high_0 = wilson_interval(sum(before), number)
    correlation = _correlation(before, after)
    down = _joined(rate_1 - low_1, high_0 - rate_0, correlation)
    up = _joined(high_1 - rate_1, rate_0 - low_0, correlation)
    return rate_1 - rate_0 - down, rate_1 - rate_0 + up


def _joined(first: float, second: float, correlation: float) -> float:
    return math.sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))


def _correlation(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Return the correlation of paired outcomes, with Newcombe's continuity correction; 0 if one is constant."""
    pairs = [(bool(first), bool(second)) for first, second in zip(before, after, strict=True)]
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if product == 0:
        return 0.0
    association = float(both * neither - lost * gained)
    if association > 0:
        association = max(0.0, association - len(pairs) / 2)
    return association / math.sqrt(product)
