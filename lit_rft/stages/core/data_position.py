"""Exact continuation after a checkpoint: the position in the data, and the trainer's count of epochs.

Lightning restores the position of loaders only within an epoch, counts an interrupted epoch (`max_steps`, `max_time`)
as complete, and a complete one as interrupted if `max_steps` is set.
"""

from typing import Any

import lightning as L
from lightning.pytorch.loops.loop import _Loop


def count_epochs(checkpoint: dict[str, Any]) -> None:
    """Correct a checkpoint's number of epochs.

    An epoch with all its batches is complete, at any time of the checkpoint; an interrupted one is not.
    """
    progress = checkpoint.get("loops", {}).get("fit_loop", {})
    if not progress or not (batches := progress["epoch_loop.batch_progress"])["total"]["ready"]:
        return
    epochs = progress["epoch_progress"]
    complete = batches["is_last_batch"]
    for counts in (epochs["current"], epochs["total"]):
        counts["processed"] = counts["completed"] = counts["ready"] - (not complete)
    if complete:
        for counts in (batches["current"], batches["total"]):
            counts["completed"] = counts["processed"]
        progress["epoch_loop.state_dict"]["_batches_that_stepped"] = batches["total"]["ready"]


def restore_position(trainer: L.Trainer) -> None:
    """Restore the position of training loaders also at the end of an epoch, and apply the trainer's limits of batches.

    Loaders of other libraries are left to Lightning.

    Raises:
        ValueError: If a loader rejects the position because it belongs to other data.
    """
    loop: Any = trainer.fit_loop
    states, loop._combined_loader_states_to_load = loop._combined_loader_states_to_load, []
    loaders = [loader for loader in loop._combined_loader.flattened if hasattr(loader, "state_dict")]
    for index, loader in enumerate(loaders):
        if hasattr(loader, "apply_limits"):
            loader.apply_limits(trainer)
        if index < len(states) and hasattr(loader, "follow"):
            loader.load_state_dict(states[index])
    epochs = loop.epoch_progress.current
    if loop.restarting and epochs.ready == epochs.completed and loop.epoch_loop.batch_progress.is_last_batch:
        _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]  # of all its loops: a new epoch begins
