"""Diagnostics of optimiser steps: means over steps, and statistics of critics and weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_SUMS = ("count", "q", "value", "advantage", "advantage_squared", "weight", "positive_weight", "weight_log_weight",
         "clamped")  # fmt: skip


def mean_over_steps(steps: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average diagnostics over optimiser steps.

    Args:
        steps: results of `optimize`. A missing sum counts as 0; a mean (a sum and its count, [2]) is averaged over the
            steps that have it, and left out if none has.
    """
    values: dict[str, list[Tensor]] = {}
    for name in sorted({name for step in steps for name in step}):
        present = [step[name] for step in steps if name in step]
        if present[0].dim() == 0:
            values[name] = present + [torch.zeros_like(present[0])] * (len(steps) - len(present))
        else:
            values[name] = [total / count for total, count in present if count > 0]
    return {name: torch.stack(parts).mean() for name, parts in values.items() if parts}


def decision_sums(level: str, *, q: Tensor, value: Tensor, weights: Tensor, clamped: Tensor) -> dict[str, Tensor]:
    """Return sums over the decisions of one level, all [N]; they are additive over micro-batches and processes."""
    q, value, weights = q.detach().float(), value.detach().float(), weights.detach().float()
    advantage = q - value
    positive = weights.clamp_min(0)  # the release's weights are values, which may be negative
    columns = (torch.ones_like(q), q, value, advantage, advantage.square(), weights, positive,
               torch.special.xlogy(positive, positive), clamped.float())  # fmt: skip
    return {f"{level}/{name}": column.sum() for name, column in zip(_SUMS, columns, strict=True)}


def summarize(sums: dict[str, Tensor], levels: Sequence[str]) -> dict[str, Tensor]:
    """Return means, standard deviations and shares from added `decision_sums`, for levels with decisions.

    `weight_entropy` is the entropy of the normalised weights divided by its maximum, log N: 1 for equal weights, near 0
    if a few decisions have all the weight.
    """
    report: dict[str, Tensor] = {}
    for level in levels:
        n, q, value, advantage, squared, weight, positive, weight_log, clamped = (sums[f"{level}/{s}"] for s in _SUMS)
        if n == 0:
            continue
        variance = (squared / n - (advantage / n).square()).clamp_min(0)
        entropy = torch.log(positive) - weight_log / positive if positive > 0 else torch.zeros_like(weight)
        report |= {
            f"{level}/q_mean": q / n,
            f"{level}/value_mean": value / n,
            f"{level}/advantage_mean": advantage / n,
            f"{level}/advantage_std": variance.sqrt(),
            f"{level}/weight_mean": weight / n,
            f"{level}/weight_entropy": entropy / torch.log(n) if n > 1 else torch.ones_like(n),
            f"{level}/clamped_fraction": clamped / n,
        }
    return report
