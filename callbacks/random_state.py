"""Random numbers that go on where a checkpoint left them."""

from typing import Any

import lightning as L
import torch


class RandomState(L.Callback):
    """Saves torch's random state of every process and restores it right before the first batch after a resume.

    Lightning keeps none, so that dropout would differ. What happens between two batches (validation, a new epoch's
    iterators) draws no numbers of training's: each batch begins where the one before has ended, in a run that was
    resumed as in one that was not.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, list[torch.Tensor]] | None = None
        self._kept: dict[str, torch.Tensor] | None = None  # at the end of the last batch

    def state_dict(self) -> dict[str, Any]:
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
        elif self._kept is not None:  # or more processes than before: the new ones keep the seed's state
            _set(self._kept)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._kept = _current()


def _current() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


def _gather(state: torch.Tensor) -> list[torch.Tensor]:
    """The state of every process; all of them must call this."""
    if not torch.distributed.is_initialized():
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
