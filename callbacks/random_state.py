"""Random numbers that go on where a checkpoint left them."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch


class RandomState(L.Callback):
    """Saves the random states of torch, NumPy and Python in every process, and restores them right before the first
    batch after a resume.

    Lightning keeps none, so that dropout would differ. They are restored this late because building loaders and
    iterators may draw numbers.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, list[Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        state: Any = np.random.get_state()
        states: dict[str, Any] = {
            "cpu": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": (state[0], torch.from_numpy(state[1].astype(np.int64)), *state[2:]),  # no arrays: they are pickled
        }
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
        return {name: _gather(state) for name, state in states.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._loaded is None:
            return
        states, self._loaded = self._loaded, None
        rank = trainer.global_rank
        if rank < len(states["cpu"]):  # more processes than before: the new ones keep the seed's state
            torch.set_rng_state(states["cpu"][rank].cpu())
            version, numbers, gauss = states["python"][rank]
            random.setstate((version, tuple(numbers), gauss))
            name, keys, *rest = states["numpy"][rank]
            np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
            if "cuda" in states and torch.cuda.is_available():
                torch.cuda.set_rng_state(states["cuda"][rank].cpu())


def _gather(state: Any) -> list[Any]:
    """The state of every process; all of them must call this."""
    if not torch.distributed.is_initialized():
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
