"""SIGTERM, SIGUSR1 and Ctrl-C at random moments: a checkpoint, the right exit code, and an exact continuation."""

from __future__ import annotations

import functools
import random
import signal
from collections.abc import Iterator
from pathlib import Path

from faults import runs
from faults.trial import Tally, Trial, expect

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield each signal for each kind of run; none in the short form: tests/callbacks/test_signals.py has them."""
    for kind in () if short else runs.KINDS:
        for number in SIGNALS:
            name = signal.Signals(number).name
            yield Trial("stops", f"{kind} by {name}", functools.partial(stop, shared, kind, number, f"{seed}/{name}"))


def stop(shared: Path, kind: str, number: int, seed: str, folder: Path) -> Tally:
    """Stop a run and its continuations, up to three times in all, each soon after its first checkpoint."""
    expected, rng = runs.reference(kind, shared), random.Random(f"{seed}/{kind}")
    seconds, stops, steps = runs.duration(expected), 0, []
    arguments = runs.command(kind, shared / "inputs", folder / "run", "--ckpt_path", "last")
    for attempt in range(3):
        child = runs.start(arguments, folder / f"run{attempt}.log")
        runs.wait_for_checkpoint(child, folder / "run")
        if child.wait(rng.uniform(0, 0.3) * seconds) is None:
            child.send(number)
            stops += 1
        code = child.wait_and_end(60)
        expect(code is not None, f"did not stop within 60 s: {child.printed[-500:]}")
        early = -number if number != signal.SIGINT else 70  # before the handlers are there
        # in its last moments, with everything saved and the handlers gone, Ctrl-C is Lightning's: exit code 1
        over = number == signal.SIGINT and code == 1 and runs.step_of(folder / "run") == runs.STEPS[kind]
        expect(code in (0, 128 + number, early) or over, f"exit code {code}: {child.printed[-500:]}")
        if code == 0:
            break
        if code == 128 + number and "at step" in child.printed and "at step 0" not in child.printed:
            expect(runs.step_of(folder / "run") > 0, f"no checkpoint: {child.printed[-500:]}")
            expect((folder / "run" / "adapter" / "adapter_config.json").exists(), "no adapter")
        steps.append(runs.step_of(folder / "run"))
    runs.finish(runs.start(arguments, folder / "last.log"))
    return runs.tally(stops, folder / "run", expected, f"stopped at steps {steps}")
