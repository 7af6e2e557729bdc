"""The evaluator of a stage, and the file of its results, for the callbacks that report them."""

import glob
import os
import re
from pathlib import Path
from typing import Any

import lightning as L


def own_file(trainer: L.Trainer, path: str | None, default: str) -> Path:
    """Return this process's output file, and create its folder.

    It is the path, or a default in the run's folder; with several processes it gets `-rank<n>` before the suffix.
    """
    chosen = Path(path or os.path.join(trainer.default_root_dir, default))
    if trainer.world_size > 1:
        chosen = chosen.with_name(f"{chosen.stem}-rank{trainer.global_rank}{chosen.suffix}")
    chosen.parent.mkdir(parents=True, exist_ok=True)
    return chosen


def files_of_processes(path: Path) -> list[Path]:
    """Return the existing files of all processes, those of an earlier run with another number of processes included.

    Args:
        path: this process's file, see `own_file`.
    """
    stem = re.sub(r"-rank\d+$", "", path.stem)
    files = path.parent.glob(f"{glob.escape(stem)}*{path.suffix}")
    return sorted(file for file in files if re.fullmatch(rf"{re.escape(stem)}(-rank\d+)?", file.stem))


def evaluator_of(module: L.LightningModule, batches: str = "", advice: str = "") -> Any:
    """Return the evaluator of a stage.

    Args:
        module: the stage.
        batches: name of the batches that the callback is for; empty for any.
        advice: the callbacks for other stages.

    Raises:
        TypeError: If the stage has no evaluator on such batches.
    """
    evaluator = getattr(module, "evaluator", None)
    kind = getattr(getattr(evaluator, "batch_kind", None), "name", batches)
    if evaluator is None:
        raise TypeError(f"{type(module).__name__} has no evaluator, whose results this callback reports: remove it")
    if batches and kind != batches:
        raise TypeError(f"{type(module).__name__} is evaluated on {kind}, and not on {batches}: {advice}")
    return evaluator
