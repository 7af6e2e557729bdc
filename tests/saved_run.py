"""A short supervised run that writes checkpoints and an adapter."""

from pathlib import Path
from typing import Any

import lightning as L

from lit_rft.callbacks import AdapterExport, AtomicCheckpointIO, RandomState, RunCheckpoint
from lit_rft.testing.tiny_stage import make_loader


def fit_and_save(
    stage: Any, model: Path, folder: Path, steps: int, ckpt_path: str | None = None, epochs: int = -1, every: int = 1
) -> None:
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        plugins=[AtomicCheckpointIO()],
        callbacks=[RunCheckpoint(every_n_steps=every), RandomState(), AdapterExport()],
    )
    trainer.fit(stage, make_loader(model, batch_size=2, episodes=7), ckpt_path=ckpt_path)
