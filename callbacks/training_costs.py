"""Costs of training: tokens, environment steps, seconds."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L

from lit_rft._files import write_json
from lit_rft.callbacks.dry_run import is_dry_run
from lit_rft.models.processes import all_gather_objects


@runtime_checkable
class CountsCosts(Protocol):
    """Source of rollouts that counts what it has taken so far, over all processes and interruptions."""

    @property
    def costs(self) -> Mapping[str, int]: ...


class TrainingCosts(L.Callback):
    """Writes `<default_root_dir>/costs_fit.json` at the end of training.

    `optimizer_steps`, `tokens_trained` (of all optimiser steps, without padding), `seconds`, and those of the stage's
    source: `env_steps`, `tokens_read` and `tokens_sampled` of episodes. They include the steps before an interruption
    as far as the checkpoint has them; evaluation during training counts in `seconds` only.
    """

    def __init__(self) -> None:
        self._before = {"tokens_trained": 0.0, "seconds": 0.0}  # of the run that this one resumes
        self._tokens = self._tokens_before = 0  # of this process, since the start and before it
        self._started: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the costs so far. All processes must call this."""
        seconds = 0.0 if self._started is None else time.monotonic() - self._started
        return {
            "tokens_trained": self._before["tokens_trained"] + sum(all_gather_objects(self._tokens)),
            "seconds": self._before["seconds"] + seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = dict(state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._tokens, self._started = 0, time.monotonic()
        self._tokens_before = self._trained(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._tokens = self._trained(pl_module) - self._tokens_before

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._started is None:  # all of its steps were made before; that run may have been stopped at its end
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        source = getattr(pl_module, "source", None)
        costs = dict(source.costs) if isinstance(source, CountsCosts) else {}
        costs |= {"optimizer_steps": trainer.global_step, **self.state_dict()}
        if trainer.is_global_zero and not is_dry_run(trainer):
            write_json(Path(trainer.default_root_dir) / "costs_fit.json", costs)

    @staticmethod
    def _trained(module: L.LightningModule) -> int:
        tokens: int = getattr(module, "tokens_trained", 0)
        return tokens
