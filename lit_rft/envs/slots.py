"""The slots of an `EnvPool`: each has a worker, replaced when it fails or exceeds a limit, and its current episode."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.memory import group_memory
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.envs.worker import CLOSE, Worker

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT = 5.0  # maximum seconds for a worker to close its environment before it is killed
_REPORT_EVERY = 5.0  # seconds between reports of how many environments are ready


@dataclass(slots=True)
class QueuedJob:
    """An episode to play, with its number of failed attempts."""

    job: EpisodeSpec
    failures: int = 0


@dataclass(slots=True)
class Slot:
    """The slot of one worker.

    Attributes:
        index: number of the slot.
        worker: started on first use, and again after a failure.
        playing: the worker's current episode.
        call: the pending request to the worker.
        deadline: of the call, on the monotonic clock.
        known: whether the consumer has received an event of the episode.
        episodes: number of episodes that the worker has started.
    """

    index: int
    worker: Worker | None = None
    playing: QueuedJob | None = None
    call: Literal["reset", "step"] | None = None
    deadline: float = 0.0
    known: bool = False
    episodes: int = 0

    def send(self, call: Literal["reset", "step"], argument: Any, timeout: float) -> None:
        """Send a request to the worker."""
        assert self.worker is not None
        self.call, self.deadline = call, time.monotonic() + timeout
        self.worker.send(call, argument)

    def kill(self) -> None:
        """Kill the worker."""
        if self.worker is not None:
            self.worker.kill()
        self.worker, self.episodes = None, 0

    def memory(self) -> float:
        """Return the resident memory of the worker and all it has started, in MiB; 0 without a process."""
        pid = None if self.worker is None else self.worker.pid
        return 0.0 if pid is None else group_memory(pid)

    def worn(self, settings: PoolSettings) -> bool:
        """Return whether the worker must be replaced before the next episode."""
        if self.worker is None:
            return False
        if 0 < settings.episodes_per_worker <= self.episodes:
            return True
        if settings.memory_limit and (memory := self.memory()) > settings.memory_limit:
            logger.warning(
                "environment %d holds %.0f MiB after %d episodes, more than memory_limit=%d: replacing it",
                self.index, memory, self.episodes, settings.memory_limit,
            )  # fmt: skip
            return True
        return False


class RetiredWorkers:
    """Replaced workers that are closing their environments."""

    def __init__(self) -> None:
        self._deadlines: dict[Worker, float] = {}

    def add(self, worker: Worker) -> None:
        """Make an idle worker close its environment and end."""
        worker.send(CLOSE)
        self._deadlines[worker] = time.monotonic() + _CLOSE_TIMEOUT

    def reap(self) -> None:
        """Remove workers that have ended, and kill those past their deadline."""
        for worker, deadline in list(self._deadlines.items()):
            if time.monotonic() >= deadline or worker.connection.poll(0):  # readable: end of the pipe
                worker.kill()
                del self._deadlines[worker]

    def wait(self) -> None:
        """Wait until all have ended."""
        for worker, deadline in self._deadlines.items():
            worker.connection.poll(max(0.0, deadline - time.monotonic()))
            worker.kill()
        self._deadlines.clear()


class StartReport:
    """Logs the number of ready environments during the first concurrent start.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started: set[int] = set()
        self._ready: set[int] = set()
        self._first = self._reported = 0.0

    def started(self, index: int) -> None:
        """Count a slot whose environment is starting."""
        if not self._started:
            self._first = self._reported = self._clock()
        self._started.add(index)

    def ready(self, index: int) -> None:
        """Count a slot whose environment is ready; its replacements are not counted again."""
        if index in self._ready:
            return
        self._ready.add(index)
        number, now = len(self._ready), self._clock()
        if number == len(self._started) or now - self._reported >= _REPORT_EVERY:
            self._reported = now
            logger.info("%d of %d environments are ready after %.1f s", number, len(self._started), now - self._first)
