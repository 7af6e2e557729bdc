"""Random states that continue after a resume."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch


class RandomState(L.Callback):
    """Saves the random states of torch, NumPy and Python in every process, and restores them before the first batch.

    Lightning saves none, so that dropout would differ after a resume. Operations between batches (validation, iterators
    of a new epoch) do not affect training: each batch starts with the state at the end of the one before, resumed or
    not.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, list[Any]] | None = None
        self._kept: dict[str, Any] | None = None  # states at the end of the last batch

    def state_dict(self) -> dict[str, Any]:
        if self._loaded is not None:  # a resumed run, before its first batch
            return self._loaded
        return {name: _gather(state) for name, state in (self._kept or _current()).items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._kept = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        states, self._loaded = self._loaded, None
        rank = trainer.global_rank
        if states is not None and rank < len(states["cpu"]):
            _set({name: gathered[rank] for name, gathered in states.items()})
        elif self._kept is not None:  # with more processes than before, new ones keep the seed's state
            _set(self._kept)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._kept = _current()


def _current() -> dict[str, Any]:
    state: Any = np.random.get_state()
    states: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        # not an array, which would be pickled
        "numpy": (state[0], torch.from_numpy(state[1].astype(np.int64)), *state[2:]),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


def _gather(state: Any) -> list[Any]:
    """Gather the states of all processes; a collective call."""
    if not torch.distributed.is_initialized():
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
