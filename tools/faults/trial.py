"""One trial: a fault, and the check that nothing was lost, in a forked process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forked import Child


class LostError(AssertionError):
    """Something was lost, or an error was unclear."""


@dataclass(frozen=True)
class Tally:
    """The result of a trial.

    Attributes:
        tried: number of faults.
        survived: number of those without a loss.
        note: figures of the trial, or what was lost.
    """

    tried: int = 1
    survived: int = 1
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """A fault to try.

    Attributes:
        kind: row of the table.
        name: unique within its kind.
        run: tries it in an empty folder.
        limit: seconds after which it counts as hung.
    """

    kind: str
    name: str
    run: Callable[[Path], Tally]
    limit: float = 1500.0


def execute(trial: Trial, folder: Path) -> dict[str, Any]:
    """Try a trial in a forked process.

    Returns:
        The row of the results file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answer = folder / "tally.json"
    answer.unlink(missing_ok=True)
    begun = time.monotonic()

    def run() -> None:
        answer.write_text(json.dumps(asdict(trial.run(folder))))

    child = Child(run, folder / "trial.log")
    code = child.wait_and_end(trial.limit)
    if code == 0:
        tally = Tally(**json.loads(answer.read_text()))
    else:
        reason = " ".join(child.printed.strip().rpartition("LostError: ")[2].split())
        reason = reason if len(reason) < 500 else f"{reason[:200]} ... {reason[-300:]}"
        note = f"hung: no end after {trial.limit:g} s" if code is None else f"exit code {code}: {reason}"
        tally = Tally(1, 0, note)
    seconds = round(time.monotonic() - begun, 1)
    return {"kind": trial.kind, "trial": trial.name, **asdict(tally), "seconds": seconds}


def expect(condition: object, message: str) -> None:
    """Check a condition.

    Raises:
        LostError: it does not hold.
    """
    if not condition:
        raise LostError(message)
