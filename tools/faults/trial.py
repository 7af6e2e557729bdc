"""One trial: a fault, and the check that nothing was lost. Trials and the runs within them are forked processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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


class Child:
    """A function in a forked process, the leader of a process group.

    Args:
        function: runs in the child; its SystemExit gives the exit code.
        log: file of everything it prints.
        environment: variables to set in the child.
    """

    def __init__(self, function: Callable[[], Any], log: Path, environment: dict[str, str] | None = None) -> None:
        self.log, self.code = log, None  # type: tuple[Path, int | None]
        self.begun = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(function, log, environment or {})

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, limit: float) -> int | None:
        """Return the exit code, or None after `limit` seconds."""
        end, pause = time.monotonic() + limit, 0.002
        while self.poll() is None and time.monotonic() < end:
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
        return self.code

    def send(self, number: int) -> None:
        """Send a signal to the process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        """Kill the process and its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(10)

    @property
    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def _become(function: Callable[[], Any], log: Path, environment: dict[str, str]) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
        os.environ.update(environment)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes ignore it
        function()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
    code = child.wait(trial.limit)
    child.end()
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
