"""The best checkpoint of a run by a logged metric: its place after the folder was moved, and why there is none."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def state_in_folder(state: dict[str, Any], folder: str | Path | None, name: str) -> dict[str, Any]:
    """Return the state of a checkpoint callback with the paths of the folder that the checkpoints are in now.

    Lightning drops the best score for another path, also another path of one folder, and the next evaluation, however
    bad, would then replace the best checkpoint.

    Args:
        state: of Lightning's `ModelCheckpoint`.
        folder: of the checkpoints.
        name: of the best checkpoint's file; without it in the folder the state is unchanged, as a run that starts from
            a checkpoint of another folder has no best one yet.
    """
    if folder is None or not Path(folder, name).is_file():
        return state
    moved = {
        key: str(Path(folder, Path(state[key]).name))
        for key in ("best_model_path", "kth_best_model_path", "last_model_path")
        if state.get(key)
    }
    best = {str(Path(folder, Path(path).name)): score for path, score in state.get("best_k_models", {}).items()}
    return {**state, **moved, "best_k_models": best, "dirpath": folder}


def warn_of_unknown(monitor: str, metrics: Iterable[str]) -> None:
    """Warn that an evaluation did not log the metric; one of training may be logged later, so it is no error."""
    names = ", ".join(sorted(metrics)) or "none"
    logger.warning(
        "RunCheckpoint.monitor: expected the name of a logged metric, got %s, which is not logged by the end of the "
        "first evaluation: there is no best checkpoint as long as it is missing; logged so far: %s",
        monitor, names,
    )  # fmt: skip


def warn_of_none(monitor: str, file: Path) -> None:
    """Warn at the end of training if no evaluation has written the best checkpoint."""
    if not file.is_file():
        logger.warning(
            "there is no %s: no evaluation in training has logged %s (RunCheckpoint.monitor); set the name of a metric "
            "that is logged, and trainer.limit_val_batches and trainer.val_check_interval for an evaluation",
            file, monitor,
        )  # fmt: skip
