"""Random numbers that go on where a checkpoint left them."""

from typing import Any

import lightning as L
import torch


class RandomState(L.Callback):
    """Saves torch's random state of every process and restores it right before the first batch after a resume.

    Lightning keeps none, so that dropout would differ. It is restored this late because building loaders and
    iterators may draw numbers.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, list[torch.Tensor]] | None = None

    def state_dict(self) -> dict[str, Any]:
        states = {"cpu": torch.get_rng_state()}
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
            if "cuda" in states and torch.cuda.is_available():
                torch.cuda.set_rng_state(states["cuda"][rank].cpu())


def _gather(state: torch.Tensor) -> list[torch.Tensor]:
    """The state of every process; all of them must call this."""
    if not torch.distributed.is_initialized():
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
