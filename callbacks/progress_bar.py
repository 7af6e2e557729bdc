"""The progress bar of a run, with its phase and the time that is left."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar, Timer
from rich.progress import ProgressColumn, Task
from rich.text import Text

from lit_rft._phases import Phases
from lit_rft.callbacks.durations import duration


class RunProgressBar(RichProgressBar):
    """Lightning's bar, with the phase of the current batch, and the time until the end of `fit` as `eta`.

    A phase in which completions or episodes finish has their numbers: `rollout 23/56`. The estimate is the time per
    share of the run so far, evaluations included. It needs an end: `max_steps`, `max_epochs` or `max_time`.

    Args:
        refresh_rate: batches per update of the bar, >= 1.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._run_started, self._first_share = 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._run_started, self._first_share = time.monotonic(), share_done(trainer)

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        """Return the columns of the bar."""
        columns: list[ProgressColumn] = super().configure_columns(trainer)
        phases = getattr(trainer.lightning_module, "phases", None)
        return columns if phases is None else [*columns, PhaseColumn(phases)]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what the bar shows beside the batches."""
        items: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        items.pop("v_num", None)  # a run is its folder
        seconds = seconds_left(trainer, time.monotonic() - self._run_started, self._first_share)
        return items if seconds is None else {"eta": duration(seconds), **items}

    def _get_train_description(self, current_epoch: int) -> str:
        """Return the name of the bar in training, without Lightning's number of the last epoch if there is none."""
        description: str = super()._get_train_description(current_epoch)
        return description.replace("/-2", "") if self.trainer.max_epochs == -1 else description


class PhaseColumn(ProgressColumn):
    """The current phase of a module's batch.

    Args:
        phases: of the module.
    """

    def __init__(self, phases: Phases) -> None:
        super().__init__()
        self._phases = phases

    def render(self, task: Task) -> Text:
        """Return the phase and its progress, as long as the bar moves."""
        return Text("" if task.finished else self._phases.status, no_wrap=True)


def share_done(trainer: L.Trainer) -> float:
    """Return the share of the training that is done, in [0, 1]; 0 without a known end."""
    shares = [0.0]
    if trainer.max_steps and trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    batches = trainer.num_training_batches
    if trainer.max_epochs and trainer.max_epochs > 0 and 0 < batches < float("inf"):
        shares.append((trainer.fit_loop.total_batch_idx + 1) / (batches * trainer.max_epochs))
    return min(max(shares), 1.0)


def seconds_left(trainer: L.Trainer, seconds: float, first_share: float = 0.0) -> float | None:
    """Estimate the seconds until the end of the training; None if they are unknown.

    Args:
        trainer: in training.
        seconds: since the training started or was resumed.
        first_share: done at that time.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    limits = [timer.time_remaining() for timer in callbacks if isinstance(timer, Timer)]
    estimates = [limit for limit in limits if limit is not None]
    share = share_done(trainer)
    if trainer.training and share > first_share:
        estimates.append(seconds * (1 - share) / (share - first_share))
    return min(estimates, default=None)
