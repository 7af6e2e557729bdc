"""The evaluator of a stage, and the file of its results, for the callbacks that report them."""

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import lightning as L

Item = TypeVar("Item")


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


def read_other_files(
    trainer: L.Trainer, path: Path, complete: Callable[[Path], object], read: Callable[[Path], Iterable[Item]]
) -> list[tuple[Path, Item]]:
    """Return what is in the files of the other processes, with the files, before any of them adds something.

    All processes must call this; what is wrong with a file is raised by all of them, as the others wait for the first.

    Args:
        trainer: of the processes.
        path: this process's file.
        complete: drops an incomplete end of a file; by the first process, one file after another.
        read: reads a file.
    """
    trainer.strategy.barrier("each process has opened its file")
    others = [file for file in files_of_processes(path) if file != path]
    for file in others if trainer.is_global_zero else ():
        # a file that another process has open is locked; other errors are raised below
        with contextlib.suppress(BlockingIOError, ValueError):
            complete(file)
    trainer.strategy.barrier("all files are complete")
    items = [(file, item) for file in others for item in read(file)]
    trainer.strategy.barrier("all files are read")
    return items


def evaluator_of(module: L.LightningModule, batches: str, advice: str) -> Any:
    """Return the evaluator of a stage.

    Args:
        module: the stage.
        batches: name of the batches that the callback is for.
        advice: the callbacks for other stages.

    Raises:
        TypeError: If the stage has no evaluator on such batches.
    """
    evaluator = getattr(module, "evaluator", None)
    kind = getattr(getattr(evaluator, "batch_kind", None), "name", batches)
    if evaluator is None:
        raise TypeError(f"{type(module).__name__} has no evaluator, whose results this callback reports: remove it")
    if kind != batches:
        raise TypeError(f"{type(module).__name__} is evaluated on {kind}, and not on {batches}: {advice}")
    return evaluator
