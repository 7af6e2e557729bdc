"""A table at the end of training: time, memory, and metrics at the start and at the end."""

import time
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lit_rft._files import write_json
from lit_rft.callbacks.dry_run import is_dry_run
from lit_rft.callbacks.durations import duration
from lit_rft.callbacks.loggers import FOLDERS
from lit_rft.callbacks.memory import peak_memory_gb

_BATCHES = 10  # over which metrics are averaged
_OUTPUTS = (
    "checkpoints/last.ckpt",
    "checkpoints/best.ckpt",
    "adapter",
    "scores.json",
    "tensorboard",
    "rollouts",
    *FOLDERS,
)


class FitSummary(L.Callback):
    """Prints a summary when `fit` ends, and writes it to `<default_root_dir>/summary_fit.json`.

    Optimiser steps, seconds, peak memory (of the GPU, else of the first process), each metric of training as mean over
    the first and last 10 batches, scores of the first and the last evaluation, and the run's outputs. A resumed run is
    summarised from its checkpoint on.
    """

    def __init__(self) -> None:
        self._started, self._first_step = 0.0, 0
        self._first: list[dict[str, Tensor]] = []
        self._last: deque[dict[str, Tensor]] = deque(maxlen=_BATCHES)
        self._evaluations: list[dict[str, Tensor]] = []  # the first and the latest

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._first_step = time.monotonic(), trainer.global_step
        self._first, self._last, self._evaluations = [], deque(maxlen=_BATCHES), []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        metrics = _metrics(trainer, evaluation=False)
        if len(self._first) < _BATCHES:
            self._first.append(metrics)
        self._last.append(metrics)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluations[1:] = [_metrics(trainer, evaluation=True)]

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or is_dry_run(trainer) or not self._last:
            return
        first = _means(self._first) | _means(self._evaluations[:-1])
        last = _means(list(self._last)) | _means(self._evaluations[-1:])
        seconds = time.monotonic() - self._started
        folder = Path(trainer.default_root_dir)
        summary = {
            "steps": [self._first_step, trainer.global_step],
            "seconds": round(seconds, 1),
            "peak_memory_gb": peak_memory_gb(trainer.strategy.root_device),
            "metrics": {name: {"first": first.get(name), "last": value} for name, value in last.items()},
            "outputs": [name for name in _OUTPUTS if (folder / name).exists()],
        }
        write_json(folder / "summary_fit.json", summary)
        Console().print(summary_table(summary, folder))


def summary_table(summary: dict[str, Any], folder: Path) -> Table:
    """Format a summary for the console.

    Args:
        summary: as in `summary_fit.json`.
        folder: of the run.
    """
    start, end = summary["steps"]
    title = (
        f"fit: steps {start} to {end} in {duration(summary['seconds'])}, peak memory {summary['peak_memory_gb']:.1f} GB"
    )
    caption = f"{folder}: {', '.join(summary['outputs'])}" if summary["outputs"] else str(folder)
    table = Table(title=title, caption=caption)
    table.add_column("metric", no_wrap=True)
    for column in (f"first {_BATCHES} batches", f"last {_BATCHES}"):
        table.add_column(column, justify="right")
    for name, values in sorted(summary["metrics"].items()):
        table.add_row(name, *("-" if value is None else f"{value:.4g}" for value in (values["first"], values["last"])))
    return table


def _metrics(trainer: L.Trainer, evaluation: bool) -> dict[str, Tensor]:
    """Return the latest metrics: those of evaluations, or all others."""
    latest = trainer.callback_metrics.items()
    return {n: value.detach().clone() for n, value in latest if "/" in n and n.startswith("val/") == evaluation}


def _means(batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Average each metric over the batches, or evaluations, that have it."""
    names = dict.fromkeys(name for batch in batches for name in batch)
    return {name: float(torch.stack([b[name].float() for b in batches if name in b]).mean()) for name in names}
