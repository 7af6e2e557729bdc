"""Requests that survive a server's failure: they wait for it, within a time limit, and are sent again."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from lit_rft.generation.server_connection import ServerUnavailable

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 20.0  # seconds


class PatientRequests:
    """Repeats requests to a server that is gone until it answers again; of several threads, one waits for all.

    Args:
        url: of the server, for messages.
        patience: maximum seconds from a request's first failure to its last attempt.
        answers: whether the server answers requests at the moment.
    """

    def __init__(self, url: str, patience: float, answers: Callable[[], bool]) -> None:
        self._url, self._patience, self._answers = url, patience, answers
        self._lock = threading.Lock()
        self._recoveries = 0
        self._stopped = threading.Event()

    def send(self, request: Callable[[], Value], restore: Callable[[], None] = lambda: None) -> Value:
        """Send a request, again after each failure, until it succeeds.

        Args:
            request: raises `ServerUnavailable` if the server is gone; other exceptions end the attempts.
            restore: brings back what a restarted server has lost.

        Raises:
            RuntimeError: The server was gone for longer than the time limit.
        """
        started: float | None = None
        pause = 0.0
        while True:
            recoveries = self._recoveries
            try:
                return request()
            except ServerUnavailable as error:
                started = started or time.monotonic()
                self._sleep(pause, started, error)
                with self._lock:  # another thread may have waited for the server in the meantime
                    if self._recoveries == recoveries:
                        self._wait(started, error, restore)
                        self._recoveries += 1
                pause = _next(pause)

    def _wait(self, started: float, failure: ServerUnavailable, restore: Callable[[], None]) -> None:
        """Wait until the server answers, and restore what it has lost."""
        logger.warning(
            "%s: waiting up to %.0f s for the server; start it again if it has ended", failure, self._patience
        )
        pause = 0.0
        while True:
            try:
                if self._answers():
                    restore()
                    break
            except ServerUnavailable as error:
                failure = error
            pause = _next(pause)
            self._sleep(pause, started, failure)
        logger.warning("%s answers again after %.0f s", self._url, time.monotonic() - started)

    def _sleep(self, pause: float, started: float, failure: ServerUnavailable) -> None:
        left = self._patience - (time.monotonic() - started)
        if self._stopped.is_set():
            raise failure
        if left <= 0:
            raise RuntimeError(
                f"{failure}; tried again for {self._patience:g} s (server.patience): is `vllm serve` running there, "
                "with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True? Start it, and continue from the last "
                "checkpoint"
            ) from failure
        self._stopped.wait(min(pause, left))

    def stop(self) -> None:
        """Let all threads end at their next failure."""
        self._stopped.set()

    def resume(self) -> None:
        """Wait for the server again from now on."""
        self._stopped.clear()


def _next(pause: float) -> float:
    return min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * pause))
