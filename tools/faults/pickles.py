"""No pickle is loaded and no data is executed over a training run, its continuation, an evaluation and a page."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from faults import runs
from faults.trial import Tally, Trial


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield each command of a run on problems, whose processes send no objects to others."""
    names = ("fit", "resume") if short else ("fit", "resume", "test", "predict", "show")
    yield Trial("pickles", ", ".join(names), functools.partial(commands, shared, names))


def forbid() -> None:
    """Make this process fail when it unpickles, or loads a checkpoint in any way but with `weights_only`."""
    load = torch.load

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("pickle is loaded")

    def weights_only_load(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("weights_only") is not True:
            raise RuntimeError("torch.load without weights_only=True")
        return load(*args, **kwargs)

    class Refused(pickle.Unpickler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            refuse()

    pickle.load = pickle.loads = refuse  # type: ignore[assignment]
    pickle.Unpickler = Refused  # type: ignore[misc]
    torch.load = weights_only_load


def commands(shared: Path, names: tuple[str, ...], folder: Path) -> Tally:
    """Run the commands one after another."""
    inputs, run = runs.prepare(shared / "inputs"), folder / "run"
    last = ["--ckpt_path", "last"]
    each = {
        "fit": runs.command("prompts", inputs, run, "--trainer.max_steps", "4"),
        "resume": runs.command("prompts", inputs, run, *last),
        "test": runs.command("prompts", inputs, run, *last, verb="test"),
        "predict": runs.command("prompts", inputs, run, *last, verb="predict"),
        "show": ["show", str(run), "--out", str(folder / "page.html")],
    }
    for name in names:
        runs.finish(runs.start(each[name], folder / f"{name}.log", before=forbid))
    return Tally(len(names), len(names))
