"""Forked processes: a start that does not import the large packages once more."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def import_large_packages() -> None:
    """Import once what takes seconds: the forked processes have it."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process with threads cannot be forked
    import lightning
    import peft
    import transformers

    _ = lightning.Trainer, peft.LoraConfig, transformers.PreTrainedModel, transformers.AutoModelForCausalLM


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

    def wait_and_end(self, limit: float) -> int | None:
        """Wait, and then kill what is left of the process and its group.

        Returns:
            The exit code, or None if the process did not end within `limit` seconds.
        """
        code = self.wait(limit)
        self.end()
        return code

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
