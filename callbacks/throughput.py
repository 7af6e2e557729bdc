"""How fast training is."""

import time
from typing import Any

import lightning as L


class Throughput(L.Callback):
    """Logs `perf/step_seconds` and, where a batch knows its `num_tokens`, `perf/tokens_per_second` (this process's
    tokens, without padding)."""

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds = time.perf_counter() - self._started
        pl_module.log("perf/step_seconds", seconds)
        if hasattr(batch, "num_tokens"):
            pl_module.log("perf/tokens_per_second", batch.num_tokens / seconds)
