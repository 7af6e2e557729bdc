"""Silent training with timed steps."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from limits import synchronize


class Clock(L.Callback):
    """Records the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        synchronize(module.device)
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        synchronize(module.device)
        self.seconds.append(time.perf_counter() - self._started)


def quiet_trainer(callback: L.Callback, **options: Any) -> L.Trainer:
    """Make a bf16 trainer without output, with freshly seeded random numbers."""
    L.seed_everything(0, verbose=False)
    return L.Trainer(
        precision="bf16-mixed", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[callback], **options,
    )  # fmt: skip
