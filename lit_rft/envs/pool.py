"""Many episodes at once: worker processes with one environment each, which can hang or die without harm."""

from __future__ import annotations

import logging
import pickle
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Literal

import gymnasium as gym

from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.worker import BAD_START, CLOSE, DONE, FAILED, RESET, STEP, WorkerProcess

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT = 5.0  # seconds that `EnvPool.close` gives the workers to close their environments


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """Something that happened to a job.

    Attributes:
        kind: ``reset`` and ``step``: the environment answered. ``lost``: the worker failed in mid-episode and the job
            has been queued again; drop what was played. ``error``: it failed for the last time and the job is over.
        worker: index of the worker, for `EnvPool.step` and `EnvPool.finish`.
        job: the job.
        payload: what `reset` or `step` returned; for ``lost`` and ``error`` a message.
    """

    kind: Literal["reset", "step", "lost", "error"]
    worker: int
    job: EpisodeSpec
    payload: Any


@dataclass(slots=True)
class _Queued:
    job: EpisodeSpec
    failures: int = 0


@dataclass(slots=True)
class _Worker:
    """One slot of the pool."""

    index: int
    process: WorkerProcess | None = None  # started when first needed, and again after a failure
    playing: _Queued | None = None
    call: Literal["reset", "step"] | None = None  # in flight
    deadline: float = 0.0  # of the call in flight, on the monotonic clock
    known: bool = False  # the consumer has been told of this episode

    def send(self, call: Literal["reset", "step"], argument: Any, timeout: float) -> None:
        assert self.process is not None
        self.call, self.deadline = call, time.monotonic() + timeout
        self.process.send(call, argument)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.process = None


class EnvPool:
    """Plays episodes in worker processes, without lockstep.

    The consumer submits jobs and then reacts to events: to ``reset`` and ``step`` with `step` or `finish`. Between the
    two calls the worker waits, so that the actions of many episodes can be generated as one batch.

        with EnvPool(functools.partial(ScienceWorldEnv, step_limit=50), num_workers=2) as pool:
            for job in jobs:
                pool.submit(job)
            while pool.outstanding:
                for event in pool.wait():
                    ...

    Every job ends exactly once: by the consumer's `finish` or by an ``error`` event. A worker that dies, does not
    answer in time or whose environment raises is killed with everything it started (a Java process, say) and replaced;
    its job is played again from the start, `max_attempts` times in all.

    Workers are started when there is work for them, in fresh interpreters that do not import the running script: they
    need no ``if __name__ == "__main__"`` guard, and load no torch unless the environment does. They end, with what they
    started, when this process ends in any way.

    Args:
        make_env: makes the environment; must be picklable and come from an importable module: a class, or a
            `functools.partial` of one.
        num_workers: processes, at least 1. About one per free core pays for ScienceWorld.
        call_timeout: limit of one step, in seconds.
        reset_timeout: limit of one reset, in seconds; a fresh worker has it once more for making the environment.
        max_attempts: how often a job may be started, at least 1.

    Attributes:
        factory: `make_env`, pickled.

    Raises:
        ValueError: an argument is out of range, or `make_env` cannot be sent to another process.
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env[Any, Any]],
        num_workers: int,
        *,
        call_timeout: float = 30.0,
        reset_timeout: float = 60.0,
        max_attempts: int = 2,
    ) -> None:
        if num_workers < 1 or max_attempts < 1:
            raise ValueError(f"num_workers and max_attempts must be at least 1, got {num_workers} and {max_attempts}")
        if call_timeout <= 0 or reset_timeout <= 0:
            raise ValueError(f"time limits must be above 0 s, got call_timeout={call_timeout}, {reset_timeout=}")
        self.factory = _pickle(make_env)
        self._call_timeout, self._reset_timeout, self._max_attempts = call_timeout, reset_timeout, max_attempts
        self._workers = [_Worker(index) for index in range(num_workers)]
        self._queue: deque[_Queued] = deque()
        self._events: deque[PoolEvent] = deque()
        self._has_worked = False
        self._closed = False

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def outstanding(self) -> int:
        """Jobs that have not ended: queued or being played."""
        return len(self._queue) + sum(worker.playing is not None for worker in self._workers)

    def process_id(self, worker: int) -> int | None:
        """The worker's process, which leads the group of all that its environment started; None when not running."""
        process = self._workers[worker].process
        return None if process is None else process.pid

    def submit(self, job: EpisodeSpec) -> None:
        """Queue a job. A free worker resets its environment for it at once.

        Raises:
            ValueError: a job of the same id is outstanding.
            RuntimeError: the pool is closed.
        """
        self._check_open()
        playing = [worker.playing for worker in self._workers if worker.playing is not None]
        if any(queued.job.id == job.id for queued in [*self._queue, *playing]):
            raise ValueError(f"a job with the id {job.id!r} is outstanding already; ids must be unique")
        self._queue.append(_Queued(job))
        self._dispatch()

    def step(self, worker: int, action: str) -> None:
        """Have a worker do an action; the answer is an event of `wait`.

        Raises:
            RuntimeError: the worker is not waiting for an action, or the pool is closed.
        """
        self._check_waiting(worker).send(STEP, action, self._call_timeout)

    def finish(self, worker: int) -> None:
        """End the worker's job, whether the episode is over or not; the worker is free for the next one.

        Raises:
            RuntimeError: the worker is not waiting for an action, or the pool is closed.
        """
        self._check_waiting(worker).playing = None
        self._dispatch()

    def wait(self, timeout: float | None = None) -> list[PoolEvent]:
        """Events that have happened, at least one; in the order of their happening.

        Args:
            timeout: seconds to wait at most; None: as long as it takes (the time limits end every call).

        Returns:
            The events; empty when the time is over or nothing is outstanding.

        Raises:
            ValueError: an environment's `reset` refused a job's options (its own exception; the job is over).
            RuntimeError: the pool is closed; or there is no `timeout` and every running episode waits for the consumer.
            Exception: what `make_env` raised, if no worker has ever worked.
        """
        self._check_open()
        end = None if timeout is None else time.monotonic() + timeout
        while not self._events:
            self._dispatch()
            if not self.outstanding:
                break
            times = [worker.deadline for worker in self._workers if worker.call is not None]
            if end is not None:
                times.append(end)
            if not times:
                raise RuntimeError("nothing to wait for: every running episode is waiting for step() or finish()")
            self._receive(min(times))
            if end is not None and time.monotonic() >= end:
                break
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None:
        """End all workers and what they started. Outstanding jobs are dropped. A second call does nothing."""
        self._closed = True
        self._queue.clear()
        self._events.clear()
        end = time.monotonic() + _CLOSE_TIMEOUT
        # Those in mid-call may hang, and are killed as they are.
        closing = [w.process for w in self._workers if w.process is not None and w.call is None]
        for process in closing:
            process.send(CLOSE)
        for process in closing:
            process.connection.poll(max(0.0, end - time.monotonic()))  # until the pipe ends
        for worker in self._workers:
            worker.kill()
            worker.playing = worker.call = None

    def _dispatch(self) -> None:
        """Give queued jobs to free workers, to running ones first; start others as needed."""
        free = sorted((w for w in self._workers if w.playing is None), key=lambda w: w.process is None)
        for worker in free[: len(self._queue)]:
            timeout = self._reset_timeout
            if worker.process is None:
                worker.process = WorkerProcess(self.factory)
                timeout += self._reset_timeout
            worker.playing, worker.known = self._queue.popleft(), False
            worker.send(RESET, worker.playing.job, timeout)

    def _receive(self, until: float) -> None:
        """Take in answers, ends of pipes and missed deadlines."""
        running = {worker.process.connection: worker for worker in self._workers if worker.process is not None}
        ready = wait(list(running), max(0.0, until - time.monotonic()))
        for connection, worker in running.items():
            if connection in ready:
                self._take_answer(worker, connection)
        now = time.monotonic()
        for connection, worker in running.items():
            # An answer that lies in the pipe counts, however late we come to read it.
            if worker.call is not None and now >= worker.deadline and connection not in ready:
                self._fail(worker, f"no answer to {worker.call} within the time limit")

    def _take_answer(self, worker: _Worker, connection: Connection) -> None:
        try:
            kind, payload = connection.recv()
        except (EOFError, OSError):
            self._fail(worker, "the worker's process died")
            return
        if kind == DONE:
            assert worker.playing is not None and worker.call is not None
            self._events.append(PoolEvent(worker.call, worker.index, worker.playing.job, payload))
            worker.call, worker.known, self._has_worked = None, True, True
        elif kind == FAILED:
            message, traceback = payload
            logger.debug("worker %d:\n%s", worker.index, traceback)
            self._fail(worker, message)
        elif kind == BAD_START and self._has_worked:  # the machine's trouble, not the user's
            self._fail(worker, f"a new environment could not be made: {payload}")
        else:
            if kind == BAD_START:
                worker.kill()
            worker.playing = worker.call = None
            raise payload

    def _fail(self, worker: _Worker, message: str) -> None:
        """Kill the worker. Its job, if any, is queued again or over."""
        worker.kill()
        failed, worker.playing, worker.call = worker.playing, None, None
        if failed is None:
            return
        failed.failures += 1
        logger.warning(
            "job %s: attempt %d of %d failed: %s", failed.job.id, failed.failures, self._max_attempts, message
        )
        if failed.failures >= self._max_attempts:
            self._events.append(PoolEvent("error", worker.index, failed.job, message))
            return
        self._queue.appendleft(failed)
        if worker.known:
            self._events.append(PoolEvent("lost", worker.index, failed.job, message))

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed")

    def _check_waiting(self, worker: int) -> _Worker:
        self._check_open()
        slot = self._workers[worker]
        if slot.playing is None or slot.call is not None:
            raise RuntimeError(f"worker {worker} is not waiting for an action: {slot.call or 'it plays nothing'}")
        return slot


def _pickle(make_env: Callable[[], gym.Env[Any, Any]]) -> bytes:
    try:
        pickled = pickle.dumps(make_env)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"make_env must be picklable, a class or a functools.partial of one: {error}") from error
    if b"__main__" in pickled:
        raise ValueError("make_env is defined in the running script, which workers do not import: move it to a module")
    return pickled
