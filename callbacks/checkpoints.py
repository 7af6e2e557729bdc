"""Checkpoint files that are never half written."""

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is whole and on the disk; reads without pickle.

    A run that is killed, or a device that is full, leaves the previous checkpoint as it was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: Saying that the previous one is intact, if there is no space or no right to write.
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

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is an incomplete or corrupt checkpoint.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no checkpoint {path}")
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            if isinstance(error, pickle.UnpicklingError):  # whose message is advice to developers
                reason = "it is damaged, or holds Python objects"
            raise ValueError(f"{path} is not a whole checkpoint of tensors and plain values: {reason}") from error
        if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
            raise ValueError(
                f"{path} is no checkpoint of a training run: expected one written by a stage of lit-rft; weights of "
                "other libraries are named by policy.model, adapters by policy.start_from"
            )
        return checkpoint
