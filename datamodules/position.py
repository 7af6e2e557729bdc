"""The position in the training data as part of every checkpoint."""

from collections.abc import Mapping
from typing import Any, TypeVar

import lightning as L

from lit_rft.datamodules.connection import Connection
from lit_rft.datamodules.loaders import TrainingLoader
from lit_rft.models.backbone import SMOLLM2

Loader = TypeVar("Loader", bound=TrainingLoader[Any])


class ResumableDataModule(L.LightningDataModule):
    """Saves the position of its training loader, and restores it from any checkpoint.

    Lightning restores the state of loaders only within an epoch; a data module's state is always restored. Subclasses
    pass their training loaders to `in_position`.
    """

    model: str | None = None  # model of the tokenizer; None for the stage's

    def __init__(self) -> None:
        super().__init__()
        self.stage = Connection(self)
        self.tokenizer: Any = None  # of the token ids in its batches, after their creation
        self._resumed: dict[str, Any] | None = None  # position of a checkpoint, until a loader restores it
        self._training: tuple[Any, TrainingLoader[Any]] | None = None  # the trainer and its loader

    @property
    def model_name(self) -> str:
        """Model of the tokenizer: this data module's, the stage's, or else the default one."""
        return self.model or self.stage.get("model_name") or SMOLLM2

    def in_position(self, loader: Loader) -> Loader:
        """Move a new training loader to the position of training: the checkpoint's, or that of the previous loader.

        Raises:
            ValueError: If a checkpoint's position belongs to other data.
        """
        trainer = self.trainer
        if trainer is None:
            return loader
        loader.apply_limits(trainer)
        if self._resumed is not None:
            loader.load_state_dict(self._resumed)
        elif self._training is not None and self._training[0] is trainer:
            loader.follow(self._training[1])
        self._resumed, self._training = None, (trainer, loader)
        return loader

    def state_dict(self) -> dict[str, Any]:
        if self._training is not None and self._training[0] is self.trainer:
            return {"training": self._training[1].state_dict()}
        return {"training": self._resumed} if self._resumed is not None else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self._resumed = state_dict["training"]
