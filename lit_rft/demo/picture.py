"""The demo's picture: success of each task before and after, and the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rft._files import replacing
from lit_rft.demo.report import task_label

_BEFORE, _AFTER = "#9aa5b1", "#0b7285"
_WINDOW = 15  # optimiser steps in a running mean of the loss


def plot(results: Mapping[str, Mapping[str, Any]], losses: Sequence[tuple[int, float]], picture: Path) -> None:
    """Write the picture.

    Args:
        results: task -> `Row.as_json()`.
        losses: optimiser step, loss.
        picture: a `.png` file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 2), layout="constrained")
    _plot_success(left, results)
    _plot_loss(right, losses)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def _plot_success(axes: Any, results: Mapping[str, Mapping[str, Any]]) -> None:
    tasks = list(results)[::-1]  # the first at the top
    for offset, name, colour in ((0.19, "before", _BEFORE), (-0.19, "after", _AFTER)):
        shares = [100 * results[task][name] for task in tasks]
        ends = [results[task][f"{name}_interval"] for task in tasks]
        errors = [
            [share - 100 * low for share, (low, _) in zip(shares, ends, strict=True)],
            [100 * high - share for share, (_, high) in zip(shares, ends, strict=True)],
        ]
        places = [index + offset for index in range(len(tasks))]
        axes.barh(places, shares, height=0.36, color=colour, label=f"{name} training")
        axes.errorbar(shares, places, xerr=errors, fmt="none", ecolor="#343a40", elinewidth=0.7, capsize=2)
    axes.set_yticks(range(len(tasks)), [f"{task_label(task)} ({results[task]['games']})" for task in tasks])
    axes.set(xlim=(0, 100), xlabel="held-out games solved (%), 95% intervals")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _plot_loss(axes: Any, losses: Sequence[tuple[int, float]]) -> None:
    steps, values = [step for step, _ in losses], [value for _, value in losses]
    axes.plot(steps, values, color=_AFTER, alpha=0.25, linewidth=0.8)
    window = [values[max(0, index - _WINDOW + 1) : index + 1] for index in range(len(values))]
    axes.plot(steps, [sum(part) / len(part) for part in window], color=_AFTER)
    axes.set(xlabel="optimiser step", ylabel="negative log-likelihood per token", yscale="log")


def read_losses(logs: Path) -> list[tuple[int, float]]:
    """Read step and loss of a run from its TensorBoard files."""
    from lit_rft.viewer.curves import read_scalars

    return read_scalars(logs).get("train/loss", [])
