"""Checkpoints that are never half written, in one place under the run's folder."""

import contextlib
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is whole and on the disk; reads without pickle.

    A run that is killed, or a device that is full, leaves the previous checkpoint as it was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises: OSError saying that the previous one is intact, if there is no space or no right to write.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f".{target.name}.*.partial"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
            with contextlib.suppress(OSError):
                partial.unlink()
            raise OSError(
                f"the checkpoint {target} could not be written ({error}); the previous one is intact: free some space "
                "and resume with --ckpt_path last"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint; tensors and plain Python values only.

        Raises: FileNotFoundError, or ValueError if the file is no whole checkpoint.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no checkpoint {path}")
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is not a whole checkpoint of tensors and plain values: {error}") from error
        return checkpoint


class RunCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, and the best by a metric if one is named, in `<default_root_dir>/checkpoints`.

    The last is written every `every_n_steps` optimiser steps and at the end of training; `--ckpt_path last` resumes
    from it.

    Args:
        every_n_steps: optimiser steps between two checkpoints.
        monitor: name of a logged metric; its best checkpoint is kept as `best.ckpt`. Null: the last only.
        mode: whether the metric should be large ("max") or small ("min").
        dirpath: another folder.
    """

    def __init__(
        self, every_n_steps: int = 10, monitor: str | None = None, mode: str = "max", dirpath: str | None = None
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1 if monitor else 0,
            save_last=True,
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._last_step = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._choose_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def _choose_folder(self, trainer: L.Trainer) -> None:
        self.dirpath = self.dirpath or os.path.join(trainer.default_root_dir, "checkpoints")

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """Where `--ckpt_path last` looks. Training may begin without one; playing untrained by mistake must not be.

        Raises: FileNotFoundError.
        """
        self._choose_folder(trainer)
        found: set[str] = super()._find_last_checkpoints(trainer)
        if not found and trainer.state.fn != "fit":
            raise FileNotFoundError(f"there is no last checkpoint in {self.dirpath}: train first, or name a file")
        return found

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_step = trainer.global_step

    # Lightning's own hooks save what was before the step under manual optimisation, and skip the last without a top-k

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        # a batch may take several optimiser steps, or none
        if trainer.global_step // self._every_n_train_steps > self._last_step // self._every_n_train_steps:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: steps count, not epochs."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the best."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking and not self._is_dry(trainer)
        if fitting and self.monitor in trainer.callback_metrics:
            self._save_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what came after the last regular checkpoint."""
        self._save_last(trainer)

    @staticmethod
    def _is_dry(trainer: L.Trainer) -> bool:
        return bool(getattr(trainer, "fast_dev_run", False))

    def _save_last(self, trainer: L.Trainer) -> None:
        if self._last_step != trainer.global_step and not self._is_dry(trainer):
            self._last_step = trainer.global_step
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
