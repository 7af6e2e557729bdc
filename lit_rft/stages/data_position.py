"""Training loaders that are given to a trainer without a data module continue where a checkpoint was written."""

from typing import Any

import lightning as L


def restore_position(trainer: L.Trainer) -> None:
    """Restore the position of training loaders also where an epoch had just ended, and let them overfit if the trainer
    does.

    Lightning keeps the state of every loader in a checkpoint, but loads it only if an epoch was under way. Loaders of
    other libraries are left to it.

    Raises: ValueError if a loader refuses the position, as it is one in other data.
    """
    loop: Any = trainer.fit_loop
    states, loop._combined_loader_states_to_load = loop._combined_loader_states_to_load, []
    loaders = [loader for loader in loop._combined_loader.flattened if hasattr(loader, "state_dict")]
    for index, loader in enumerate(loaders):
        if trainer.overfit_batches and hasattr(loader, "overfit"):
            loader.overfit(trainer.overfit_batches)
        if index < len(states) and hasattr(loader, "follow"):
            loader.load_state_dict(states[index])
