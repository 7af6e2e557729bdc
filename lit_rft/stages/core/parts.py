"""Parts of a stage with weights or state of their own."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor


class Stateful(Protocol):
    """A part whose state checkpoints contain. A stage lists its own in `stateful`, by name."""

    def state_dict(self) -> Any:
        """Return tensors and plain values."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Restore the state of a checkpoint."""
        ...


class WeightPart:
    """Weights added to a stage, with their checks in checkpoints. A stage lists its parts in `weight_parts`.

    Subclasses override what they need; the defaults do nothing.
    """

    def add(self, stage: Any) -> None:
        """Add the weights to a stage, once its policy is loaded and before any checkpoint is.

        Raises:
            ValueError: For settings that the weights cannot be trained with.
        """

    def saved_names(self, names: Iterable[str]) -> list[str]:
        """Return which of a stage's weights belong in checkpoints though they do not train."""
        return []

    def check_source(self, checkpoint: Mapping[str, Any], source: str) -> None:
        """Check the weights' settings in a checkpoint.

        Raises:
            ValueError: If its weights would fit, but mean something else.
        """

    def starting_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a checkpoint to start from, with those that this part makes from others."""
        return weights

    def load(self, stage: Any, weights: Mapping[str, Tensor], source: str) -> None:
        """Load the part from a checkpoint to start from, if that contains it."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what trains besides the policy, each part with its learning rate and name."""
        return []
