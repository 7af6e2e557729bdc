"""Calibration of critics: Q against observed returns."""

import logging
from typing import Any

import lightning as L
import torch

from lit_rft.callbacks.loggers import log_figure, log_scalars

logger = logging.getLogger(__name__)


class CriticCalibration(L.Callback):
    """After each epoch, plots the critics' Q against the observed discounted return, for each level.

    Points on the diagonal are exact; points above it are optimistic. Decisions of episodes cut by a time limit have no
    known return and are left out; a level without any known return is skipped, with one log message. The correlation,
    that of the ranks (Spearman's) and the mean difference are logged as `train/<level>/q_return_correlation`,
    `train/<level>/q_return_rank_correlation` and `train/<level>/q_bias`. Works with any module with an `actor_critic`
    that has `q_and_returns`.

    Args:
        bins: number of bins of Q for the line of averages, >= 1.

    Raises:
        ImportError: Without matplotlib (`pip install lit-rft[plots]`).
    """

    def __init__(self, bins: int = 10) -> None:
        if bins < 1:
            raise ValueError(f"bins must be >= 1, got {bins}")
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ImportError("CriticCalibration needs matplotlib: pip install 'lit-rft[plots]'") from error
        self.bins = bins
        self._skipped: set[str] = set()  # levels with a message in the log

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        points: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for level, q, returns in module.actor_critic.q_and_returns:
            points.setdefault(level, []).append((q, returns))
        for level, parts in points.items():
            q, returns = (torch.cat(column).double() for column in zip(*parts, strict=True))
            if len(q):
                self._report(trainer, pl_module, level, q, returns)
            elif level not in self._skipped:
                self._skipped.add(level)
                logger.info("no calibration plot of the %s level: no decision's return is known, as all of its "
                            "episodes were cut", level)  # fmt: skip

    def _report(
        self, trainer: L.Trainer, module: L.LightningModule, level: str, q: torch.Tensor, returns: torch.Tensor
    ) -> None:
        metrics = {f"train/{level}/q_bias": float((q - returns).mean())}
        if len(q) > 1 and q.std() > 0 and returns.std() > 0:
            name = f"train/{level}/q_return"
            metrics[f"{name}_correlation"] = float(torch.corrcoef(torch.stack([q, returns]))[0, 1])
            metrics[f"{name}_rank_correlation"] = rank_correlation(q, returns)
        if trainer.is_global_zero:
            log_scalars(trainer, metrics)
            log_figure(trainer, f"calibration/{level}", self.figure(q, returns, level))

    def figure(self, q: torch.Tensor, returns: torch.Tensor, level: str) -> Any:
        """Plot return against Q, with the mean return of each bin of Q."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5, 4.5))
        axes = figure.subplots()
        axes.scatter(q.numpy(), returns.numpy(), s=6, alpha=0.3, linewidths=0)
        order = q.argsort()
        parts = [part for part in order.tensor_split(self.bins) if len(part)]
        axes.plot([float(q[p].mean()) for p in parts], [float(returns[p].mean()) for p in parts], "o-", color="C1")
        low, high = float(min(q.min(), returns.min())), float(max(q.max(), returns.max()))
        axes.plot([low, high], [low, high], "--", color="grey")
        axes.set(xlabel="Q(s, u)", ylabel="observed return", title=f"{level} level, {len(q)} decisions")
        return figure


def rank_correlation(q: torch.Tensor, returns: torch.Tensor) -> float:
    """Return Spearman's correlation of values and returns, both [N] and not all equal."""
    return float(torch.corrcoef(torch.stack([_ranks(q), _ranks(returns)]))[0, 1])


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the ranks of values [N], equal ones with their mean rank."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[places]
