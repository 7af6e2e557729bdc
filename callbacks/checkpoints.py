"""Checkpoint files that are never incomplete."""

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically and reads them without pickle.

    A temporary file is renamed when it is complete and on disk: if a run is killed, or the device is full, the previous
    checkpoint is unchanged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: No space or no write permission; the message says that the previous checkpoint is intact.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f".{target.name}.*.partial"):  # of a process killed while writing
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

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is an incomplete or corrupt checkpoint.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no checkpoint {path}: name an existing file, or last")
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            if isinstance(error, pickle.UnpicklingError):  # its message is advice for developers
                reason = "it is damaged, or holds Python objects"
            elif not Path(path).stat().st_size:
                reason = "the file is empty"
            raise ValueError(
                f"{path} is an incomplete or corrupt checkpoint, expected tensors and plain values: {reason}; name "
                "another checkpoint, or remove this one to start again"
            ) from error
        if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
            raise ValueError(
                f"{path} is not a checkpoint of a training run: expected one written by a stage of lit-rft; "
                "set weights of other libraries as policy.model, adapters as policy.start_from"
            )
        return checkpoint
