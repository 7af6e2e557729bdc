"""Evaluation of a policy in validation, test and predict: the interface."""

from collections.abc import Mapping
from typing import Any, Protocol

from lit_rft.rollouts.policy import Policy
from lit_rft.stages.core.data_check import BatchKind


class Evaluator(Protocol):
    """Evaluates a policy over the batches of an epoch.

    A stage has one as `evaluator`; `PolicyModule` calls it in the hooks of validation, test and predict. Callbacks read
    `results` and `table`, and set `skip` before `predict`.
    """

    batch_kind: BatchKind  # of the batches that it evaluates on
    results: list[Any]  # of the epoch so far
    table: dict[str, dict[str, float]]  # row -> column -> mean, after the epoch; the last row is `mean`
    costs: dict[str, float]  # of the epoch, over all processes; may be empty
    skip: set[Any]  # what `predict` leaves out, as it was done before
    row_name: str  # what a row of the table is: `task`, `benchmark`

    def settings(self) -> dict[str, Any]:
        """Return the settings that results depend on, besides the policy; plain data."""
        ...

    def begin(self, policy: Policy) -> None:
        """Begin an epoch: discard the results of the last one."""
        ...

    def step(self, batch: Any, index: int, num_batches: int) -> list[Any]:
        """Evaluate on a batch, and return its results."""
        ...

    def end(self, verb: str) -> dict[str, dict[str, float]]:
        """End the epoch, and return its table.

        All processes must call this.

        Args:
            verb: `validate`, `test` or `predict`; empty in the sanity check.
        """
        ...

    def cells(self, row: dict[str, float]) -> dict[str, str]:
        """Format a row of the table for the console: heading -> text."""
        ...

    def scalars(self) -> dict[str, float]:
        """Return the values of the table that are logged, by name."""
        ...

    def weights_changed(self) -> None:
        """Forget copies of the policy's weights: others may have been loaded."""
        ...

    def close(self) -> None:
        """Stop all processes of its own."""
        ...


def log_scores(module: Any, scores: Mapping[str, Any], **options: Any) -> None:
    """Log metrics of an evaluation against the number of optimiser steps of the weights.

    Args:
        module: the stage.
        scores: by name.
        **options: of `LightningModule.log_dict`.
    """
    module.log_dict({**scores, "step": float(module.trained_steps)}, **options)
