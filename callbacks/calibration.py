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
    that has `q_and_returns`; a resumed run continues with those of the epoch so far.

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
        self._module: Any = None
        self._reported = False  # the epoch's points
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the points of the epoch so far, of the first process: only its plot is made."""
        if self._module is None:
            return self._loaded or {}
        points = _by_level(self._module)
        self._module.actor_critic.q_and_returns = points  # few tensors in place of those of each micro-batch
        return {"points": [list(point) for point in points], "reported": self._reported}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue the epoch of the checkpoint; one that has all its batches ends here: Lightning begins the next."""
        self._module, loaded, self._loaded = pl_module, self._loaded, None
        if not loaded:
            return
        self._module.actor_critic.q_and_returns = [tuple(point) for point in loaded["points"]]
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            if not loaded["reported"]:
                self.on_train_epoch_end(trainer, pl_module)
            self._module.actor_critic.q_and_returns = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reported = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reported = True
        for level, q, returns in _by_level(pl_module):
            q, returns = q.double(), returns.double()
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


def _by_level(module: Any) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Return Q and return of all decisions of each level."""
    points: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for level, q, returns in module.actor_critic.q_and_returns:
        points.setdefault(level, []).append((q, returns))
    return [(level, torch.cat([q for q, _ in parts]), torch.cat([returns for _, returns in parts]))
            for level, parts in points.items()]  # fmt: skip


def rank_correlation(q: torch.Tensor, returns: torch.Tensor) -> float:
    """Return Spearman's correlation of values and returns, both [N] and not all equal."""
    return float(torch.corrcoef(torch.stack([_ranks(q), _ranks(returns)]))[0, 1])


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the ranks of values [N], equal ones with their mean rank."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[places]
