"""A callback that keeps what is logged."""

from typing import Any

import lightning as L


class Recorder(L.Callback):
    """What was logged after each step."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
