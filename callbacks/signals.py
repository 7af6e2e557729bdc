"""Signals that stop a run: SIGTERM (queues, containers), SIGUSR1 (Slurm's warning) and Ctrl-C."""

import _thread
import os
import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# An exception between a lock's acquisition and the statement that releases it leaves the lock held, and the next thread
# that needs it waits for ever: none is raised in code of these packages, except where it blocks
_LOCKING = frozenset({"_frozen_importlib", "_weakrefset", "concurrent", "contextlib", "importlib", "logging",
                      "multiprocessing", "queue", "rich", "subprocess", "threading", "weakref"})  # fmt: skip
_STARTING = frozenset({"start", "__init__"})  # functions there that start threads or processes: never long
_RETRY_SECONDS = 0.02


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

    Raising is safe whenever the weights are those of a complete optimiser step (in a rollout, a forward pass or
    validation), and no lock may be left behind: in code that takes locks the handlers send themselves the signal again,
    a moment later. A second Ctrl-C ends a held run without saving.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the first signal
        self.held = False
        self._active = False
        self._before: dict[int, Any] = {}
        self._postponed = False  # until the signal is sent again
        self._resent = False
        self._sender: Any = None  # a lock, held by the thread that will send the signal again
        self._last_place: tuple[FrameType, int] | None = None  # where the signal was postponed

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
        """Restore the earlier handlers; they get no signal that was postponed."""
        self.held, self._postponed, self._last_place = True, False, None
        if self._sender is not None and threading.current_thread() is threading.main_thread():
            self._sender.acquire()  # from here on nothing is sent
            self._sender = None
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
            self._raise()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._active:  # reinstalled by code that had saved this handler
            before = self._before.get(number)
            signal.signal(number, before if before is not None else signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self._resent:
            again, self._resent = not self._postponed, False
        else:
            again, self.received = bool(self.received), self.received or number
            if again and number == signal.SIGINT:
                raise KeyboardInterrupt
        if again or self.held:
            return
        if self._may_raise(frame):
            self._raise()
        self._postpone()

    def _raise(self) -> NoReturn:
        self.held, self._postponed, self._last_place = True, False, None  # saving comes next
        raise StoppedBySignal(self.received)

    def _may_raise(self, frame: FrameType | None) -> bool:
        """Return whether an exception leaves no lock behind: outside of code with locks, or where that waits."""
        if frame is None or not _takes_locks(frame):
            return True
        place, before = (frame, frame.f_lasti), self._last_place
        self._last_place = place
        # the frame is at the call at which it was before: that waits, and has not acquired anything
        waits = before is not None and before[0] is frame and before[1] == place[1]
        return waits and not _starts(frame)

    def _postpone(self) -> None:
        """Send the main thread the signal again, from a thread that takes no lock of the interrupted code."""
        self._postponed, self._sender = True, _thread.allocate_lock()
        self._sender.acquire()
        _thread.start_new_thread(self._resend, (self._sender, threading.get_ident(), self.received))

    def _resend(self, sender: Any, thread: int, number: int) -> None:
        time.sleep(_RETRY_SECONDS)
        if self._postponed:
            self._resent = True
            signal.pthread_kill(thread, number)  # wakes a call that blocks, too
        sender.release()


def _takes_locks(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in _LOCKING


def _starts(frame: FrameType | None) -> bool:
    """Return whether code with locks is starting a thread or a process, which would be left unknown."""
    while frame is not None and _takes_locks(frame):
        if frame.f_code.co_name in _STARTING:
            return True
        frame = frame.f_back
    return False
