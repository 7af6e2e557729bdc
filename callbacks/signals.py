"""Signals that stop a run: SIGTERM (queues, containers), SIGUSR1 (Slurm's warning) and Ctrl-C."""

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StoppedBySignal(SystemExit):
    """The run was stopped by a signal; the process exits with 128 plus the signal's number, as shells do.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    @property
    def signal_name(self) -> str:
        return signal.Signals(self.number).name


class StopSignals:
    """Handlers that raise `StoppedBySignal` at once, or keep the signal while `held`.

    Raising is safe whenever the weights are those of a complete optimiser step: in a rollout, a forward pass or
    validation. A second Ctrl-C ends a held run without saving.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the first signal
        self.held = False
        self._active = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Install the handlers, except for signals that the process ignores; again if they were replaced.

        Python allows this in the main thread only; elsewhere nothing happens.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._active = True
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler not in (self._handle, signal.SIG_IGN):
                self._before.setdefault(number, handler)
                signal.signal(number, self._handle)

    def restore(self) -> None:
        """Restore the earlier handlers."""
        self._active = self.held = False
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def release(self) -> None:
        """Stop holding signals back.

        Raises:
            StoppedBySignal: If one was received in the meantime.
        """
        self.held = False
        self.check()

    def check(self) -> None:
        """Check for a received signal.

        Raises:
            StoppedBySignal: If there is one.
        """
        if self.received:
            raise StoppedBySignal(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._active:  # reinstalled by code that had saved this handler
            before = self._before.get(number)
            signal.signal(number, before if before is not None else signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        again, self.received = self.received, self.received or number
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not again and not self.held:
            self.held = True  # saving comes next
            raise StoppedBySignal(number)
