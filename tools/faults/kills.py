"""kill -9 of runs in one process: at random moments, and within the writing of files, updates and evaluations."""

from __future__ import annotations

import functools
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults import runs
from faults.trial import Tally, Trial, expect

POINTS = ("fsync", "rename", "half a rollout line", "half a checkpoint", "update", "sampling", "evaluation", "backward")


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield random moments, then points in the code, for each kind of run."""
    for kind in ("episodes",) if short else runs.KINDS:
        for number in range(1 if short else 6):
            run = functools.partial(at_moments, shared, kind, f"{seed}/{kind}/{number}")
            yield Trial("kills", f"{kind} at random moments {number}", run)
        for point in ("half a rollout line",) if short else POINTS:
            run = functools.partial(at_point, shared, kind, point, f"{seed}/{kind}/{point}")
            yield Trial("kills", f"{kind} in {point}", run)


def at_moments(shared: Path, kind: str, seed: str, folder: Path) -> Tally:
    """Kill a run at any moment of the time that it takes, and its continuations soon after their first checkpoint."""
    expected, rng = runs.reference(kind, shared), random.Random(seed)
    seconds, kills, steps = runs.duration(expected), 0, []
    arguments = runs.command(kind, shared / "inputs", folder / "run", "--ckpt_path", "last")
    for attempt in range(3):
        child = runs.start(arguments, folder / f"run{attempt}.log")
        delay = rng.uniform(0.05, 0.95) * seconds
        if attempt:
            runs.wait_for_checkpoint(child, folder / "run")
            delay *= 0.3
        if child.wait(delay) is not None:
            expect(child.code == 0, f"ended by itself with {child.code}: {child.printed[-500:]}")
            break
        child.end()
        kills += 1
        steps.append(runs.step_of(folder / "run"))
    return _resumed(arguments, folder, expected, kills, f"killed after steps {steps}")


def at_point(shared: Path, kind: str, point: str, seed: str, folder: Path) -> Tally:
    """Kill a run within the n-th call of a function, for an early and a late n."""
    expected, rng = runs.reference(kind, shared), random.Random(seed)
    arguments = runs.command(kind, shared / "inputs", folder / "run", "--ckpt_path", "last")
    kills, calls = 0, []
    for most in (3, 12):
        number = rng.randint(1, most)
        child = runs.start(arguments, folder / f"run{most}.log", before=functools.partial(arm, point, number))
        code = child.wait_and_end(600)
        expect(code in (0, -signal.SIGKILL), f"ended with {code}: {child.printed[-500:]}")
        kills += code != 0
        calls.append(number)
        if code == 0:
            break
    if not kills:
        return Tally(0, 0, f"this run has no call {calls[0]} of it")
    return _resumed(arguments, folder, expected, kills, f"in calls {calls}")


def _resumed(arguments: list[str], folder: Path, expected: Path, kills: int, note: str) -> Tally:
    runs.finish(runs.start(arguments, folder / "last.log"))
    left = [str(path) for path in (folder / "run").rglob("*") if path.name.startswith(".") and path.is_file()]
    expect(not left, f"temporary files remain: {left}")
    return runs.tally(kills, folder / "run", expected, note)


def arm(point: str, number: int) -> None:
    """Make this process kill itself in a call of a function."""
    owner, name, halves = _place(point)
    original = getattr(owner, name)
    calls = 0

    @functools.wraps(original)
    def armed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            if halves is not None:
                halves(*args)
            elif calls % 2:  # at its end
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, armed)


def _place(point: str) -> tuple[Any, str, Callable[..., Any] | None]:
    """Return a module or class, the name of a function in it, and how to do half of its work."""
    import lightning as L
    import torch
    from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop

    from lit_rft._files import AppendedFile
    from lit_rft.generation import sampling

    def half_line(file: Any, data: bytes) -> None:
        file._stream.write(data[: len(data) // 2])

    def half_checkpoint(checkpoint: Any, file: Any) -> None:
        file.write(b"PK" * 2000)
        file.flush()

    return {
        "fsync": (os, "fsync", None),
        "rename": (os, "replace", None),
        "half a rollout line": (AppendedFile, "append", half_line),
        "half a checkpoint": (torch, "save", half_checkpoint),
        "update": (torch.optim.AdamW, "step", None),
        "sampling": (sampling.RandomStream, "uniform", None),
        "evaluation": (_EvaluationLoop, "run", None),
        "backward": (L.LightningModule, "manual_backward", None),
    }[point]
