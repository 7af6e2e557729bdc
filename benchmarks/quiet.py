"""Training within a benchmark's process, without output."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning as L


def silence() -> None:
    """Keep everything but errors of this library and Lightning from the console."""
    for name in ("lightning.pytorch", "lightning.fabric", "lit_rft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def make_trainer(**options: Any) -> L.Trainer:
    """Make a trainer on a CPU that shows and writes nothing, and does not evaluate within `fit`."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", logger=False, limit_val_batches=0, num_sanity_val_steps=0, **quiet, **options)
