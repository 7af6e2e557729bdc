"""The slots of an `EnvPool`: each has a worker, replaced when it fails or is worn, and the episode that it plays."""

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

_CLOSE_TIMEOUT = 5.0  # seconds in which a worker must have closed its environment, before it is killed
_REPORT_EVERY = 5.0  # seconds between reports of how many environments are ready


@dataclass(slots=True)
class QueuedJob:
    """An episode to play, and how often that has failed."""

    job: EpisodeSpec
    failures: int = 0


@dataclass(slots=True)
class Slot:
    """A place for one worker.

    Attributes:
        index: number of the slot.
        worker: started when first needed, and again after a failure.
        playing: the episode that the worker plays.
        call: what the worker has been asked for and has not answered.
        deadline: of the call, on the monotonic clock.
        known: whether the consumer has been told of the episode.
        episodes: number of episodes that the worker has begun.
    """

    index: int
    worker: Worker | None = None
    playing: QueuedJob | None = None
    call: Literal["reset", "step"] | None = None
    deadline: float = 0.0
    known: bool = False
    episodes: int = 0

    def send(self, call: Literal["reset", "step"], argument: Any, timeout: float) -> None:
        """Ask the worker for something."""
        assert self.worker is not None
        self.call, self.deadline = call, time.monotonic() + timeout
        self.worker.send(call, argument)

    def kill(self) -> None:
        """End the worker as it is."""
        if self.worker is not None:
            self.worker.kill()
        self.worker, self.episodes = None, 0

    def memory(self) -> float:
        """Resident memory of the worker and what it has started, in MiB; 0 without a process."""
        pid = None if self.worker is None else self.worker.pid
        return 0.0 if pid is None else group_memory(pid)

    def worn(self, settings: PoolSettings) -> bool:
        """Whether another worker must play the next episode."""
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
    """Workers that are closing their environments, while others have taken their places."""

    def __init__(self) -> None:
        self._deadlines: dict[Worker, float] = {}

    def add(self, worker: Worker) -> None:
        """Ask a worker that is in no call to close its environment and end."""
        worker.send(CLOSE)
        self._deadlines[worker] = time.monotonic() + _CLOSE_TIMEOUT

    def reap(self) -> None:
        """Take leave of those that have ended, and kill those whose time is over."""
        for worker, deadline in list(self._deadlines.items()):
            if time.monotonic() >= deadline or worker.connection.poll(0):  # readable: the pipe has ended
                worker.kill()
                del self._deadlines[worker]

    def wait(self) -> None:
        """Wait until all have ended."""
        for worker, deadline in self._deadlines.items():
            worker.connection.poll(max(0.0, deadline - time.monotonic()))
            worker.kill()
        self._deadlines.clear()


class StartReport:
    """Logs how many environments are ready, while they start side by side for the first time.

    Args:
        clock: gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started: set[int] = set()
        self._ready: set[int] = set()
        self._first = self._reported = 0.0

    def started(self, index: int) -> None:
        """Count a slot whose environment is being made."""
        if not self._started:
            self._first = self._reported = self._clock()
        self._started.add(index)

    def ready(self, index: int) -> None:
        """Count a slot whose environment has been made; its replacements are not counted again."""
        if index in self._ready:
            return
        self._ready.add(index)
        number, now = len(self._ready), self._clock()
        if number == len(self._started) or now - self._reported >= _REPORT_EVERY:
            self._reported = now
            logger.info("%d of %d environments are ready after %.1f s", number, len(self._started), now - self._first)
