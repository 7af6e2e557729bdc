"""Training throughput."""

import time
from typing import Any

import lightning as L


class Throughput(L.Callback):
    """Logs `perf/step_seconds`, and `perf/tokens_per_second` if a batch or the module has `num_tokens`.

    Tokens are those of this process, without padding.
    """

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
        tokens = getattr(batch, "num_tokens", getattr(pl_module, "num_tokens", None))  # of the batch, or of its rollout
        if tokens is not None:
            pl_module.log("perf/tokens_per_second", tokens / seconds)
