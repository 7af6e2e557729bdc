"""Concurrent episodes: workers with one environment each, which can hang or die without harm."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import gymnasium as gym

from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.factories import pickle_factory
from lit_rft.envs.pool_events import PoolEvent
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.envs.raised import WorkerTracebackError
from lit_rft.envs.slots import QueuedJob, RetiredWorkers, Slot, StartReport
from lit_rft.envs.worker import BAD_START, DONE, FAILED, READY, RESET, STEP
from lit_rft.envs.worker_process import WorkerProcess
from lit_rft.envs.worker_thread import WorkerThread

logger = logging.getLogger(__name__)

_MEMORY_INTERVAL = 1.0  # seconds between measurements of the memory of busy workers


class EnvPool:
    """Plays episodes in worker processes (or threads), without lockstep.

    The consumer submits jobs and then reacts to events: to ``reset`` and ``step`` with `step` or `finish`. Between the
    two calls the worker waits, so that the actions of many episodes can be generated as one batch.

        with EnvPool(functools.partial(ScienceWorldEnv, step_limit=50), num_workers=2) as pool:
            for job in jobs:
                pool.submit(job)
            while pool.outstanding:
                for event in pool.wait():
                    ...

    Every job ends exactly once: by the consumer's `finish` or by an ``error`` event. A worker that dies, exceeds a
    limit of time or memory, or whose environment raises is killed with everything it started (for example a Java
    process) and replaced; its job is played again from the start, up to `PoolSettings.max_attempts` attempts.

    Workers are started on demand, in parallel, in fresh interpreters that do not import the running script: they need
    no ``if __name__ == "__main__"`` guard, and do not load torch unless the environment does. They end, with all
    processes that they started, when this process ends in any way. Threads share the interpreter: see
    `PoolSettings.threads` for their limitations.

    Args:
        make_env: makes the environment; must be picklable and come from an importable module: a class, or a
            `functools.partial` of one.
        num_workers: environments, at least 1. About one per free core pays for ScienceWorld.
        settings: limits, and processes or threads; the defaults of `PoolSettings` if None.

    Attributes:
        settings: the settings.

    Raises:
        ValueError: `num_workers` is out of range, or `make_env` cannot be sent to another process.
    """

    def __init__(
        self, make_env: Callable[[], gym.Env[Any, Any]], num_workers: int, settings: PoolSettings | None = None
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}")
        self.settings = settings or PoolSettings()
        self._factory = pickle_factory(make_env, importable=not self.settings.threads)
        self._slots = [Slot(index) for index in range(num_workers)]
        self._retired = RetiredWorkers()
        self._start_report = StartReport()
        self._queue: deque[QueuedJob] = deque()
        self._events: deque[PoolEvent] = deque()
        self._next_measurement = 0.0
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
        return len(self._queue) + sum(slot.playing is not None for slot in self._slots)

    def process_id(self, worker: int) -> int | None:
        """Return the id of the worker's process, the leader of the group of all that its environment started.

        None if it is not running, and for a thread.
        """
        running = self._slots[worker].worker
        return None if running is None else running.pid

    def submit(self, job: EpisodeSpec) -> None:
        """Queue a job. A free worker resets its environment for it at once.

        Raises:
            ValueError: a job of the same id is outstanding.
            RuntimeError: the pool is closed.
        """
        self._check_open()
        playing = [slot.playing for slot in self._slots if slot.playing is not None]
        if any(queued.job.id == job.id for queued in [*self._queue, *playing]):
            raise ValueError(f"a job with the id {job.id!r} is outstanding already; ids must be unique")
        self._queue.append(QueuedJob(job))
        self._dispatch()

    def step(self, worker: int, action: str) -> None:
        """Send an action to a worker; the result is an event of `wait`.

        Raises:
            RuntimeError: the worker is not waiting for an action, or the pool is closed.
        """
        self._check_waiting(worker).send(STEP, action, self.settings.call_timeout)

    def finish(self, worker: int) -> None:
        """End the worker's job, at the end of the episode or before; the worker or its replacement takes the next.

        Raises:
            RuntimeError: the worker is not waiting for an action, or the pool is closed.
        """
        slot = self._check_waiting(worker)
        slot.playing = None
        if slot.worker is not None and slot.worn(self.settings):
            self._retired.add(slot.worker)
            slot.worker, slot.episodes = None, 0
        self._dispatch()

    def wait(self, timeout: float | None = None) -> list[PoolEvent]:
        """Wait for at least one event, and return events in the order of their occurrence.

        Args:
            timeout: maximum seconds to wait; None: no limit (the time limits end every call).

        Returns:
            The events; empty after the timeout, or if nothing is outstanding.

        Raises:
            ValueError: an environment's `reset` refused a job's options (its own type of exception, with the place in
                the environment's code; the job is over).
            ContractError: an environment's answer was of the wrong form.
            TimeoutError: a call in a thread exceeded its time limit.
            RuntimeError: the pool is closed; or there is no `timeout` and every running episode waits for the consumer.
            Exception: the error of `make_env`, if no worker has ever worked; its message has the place as well.
        """
        self._check_open()
        end = None if timeout is None else time.monotonic() + timeout
        while not self._events:
            self._dispatch()
            if not self.outstanding:
                break
            times = [slot.deadline for slot in self._slots if slot.call is not None]
            if times and self.settings.memory_limit:
                times.append(self._next_measurement)
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
        """Stop all workers and the processes they started. Outstanding jobs are dropped. A second call does nothing."""
        self._closed = True
        self._queue.clear()
        self._events.clear()
        for slot in self._slots:
            if slot.worker is not None and slot.call is None:
                self._retired.add(slot.worker)
                slot.worker = None
        self._retired.wait()
        for slot in self._slots:  # busy workers may hang, and are killed
            slot.kill()
            slot.playing = slot.call = None

    def _dispatch(self) -> None:
        """Assign queued jobs to free workers, running ones first; start others as needed."""
        self._retired.reap()
        free = sorted((slot for slot in self._slots if slot.playing is None), key=lambda slot: slot.worker is None)
        for slot in free[: len(self._queue)]:
            timeout = self.settings.reset_timeout
            if slot.worker is not None and slot.worker.connection.poll(0):
                self._take_answer(slot)  # it died while it was idle: that is no attempt of the next job
            if slot.worker is None:
                slot.worker = (WorkerThread if self.settings.threads else WorkerProcess)(self._factory)
                self._start_report.started(slot.index)
                timeout += self.settings.reset_timeout
            slot.playing, slot.known = self._queue.popleft(), False
            slot.episodes += 1
            slot.send(RESET, slot.playing.job, timeout)

    def _receive(self, until: float) -> None:
        """Process responses, ends of pipes, missed deadlines and excess memory."""
        running = {slot.worker.connection: slot for slot in self._slots if slot.worker is not None}
        ready = wait(list(running), max(0.0, until - time.monotonic()))
        for connection, slot in running.items():
            if connection in ready:
                self._take_answer(slot)
        now = time.monotonic()
        for connection, slot in running.items():
            # A response in the pipe counts, however late it is read.
            if slot.call is not None and now >= slot.deadline and connection not in ready:
                self._time_out(slot)
        if self.settings.memory_limit and now >= self._next_measurement:
            self._check_memory()

    def _check_memory(self) -> None:
        """Kill busy workers with more than twice the memory limit."""
        for slot in self._slots:
            if slot.call is not None and (memory := slot.memory()) > 2 * self.settings.memory_limit:
                limit = self.settings.memory_limit
                self._fail(slot, f"it held {memory:.0f} MiB, more than twice the limit (pool.memory_limit={limit})")
        self._next_measurement = time.monotonic() + _MEMORY_INTERVAL

    def _take_answer(self, slot: Slot) -> None:
        assert slot.worker is not None
        try:
            kind, payload = slot.worker.connection.recv()
        except (EOFError, OSError):
            self._fail(slot, "the worker died")
            return
        if kind == READY:
            self._has_worked = True
            self._start_report.ready(slot.index)
        elif kind == DONE:
            assert slot.playing is not None and slot.call is not None
            self._events.append(PoolEvent(slot.call, slot.index, slot.playing.job, payload))
            slot.call, slot.known = None, True
        elif kind == FAILED:
            message, traceback = payload
            logger.debug("worker %d:\n%s", slot.index, traceback)
            self._fail(slot, message)
        elif kind == BAD_START and self._has_worked:  # a problem of the machine, not of make_env
            self._fail(slot, f"a new environment could not be made: {payload[0]}")
        else:
            if kind == BAD_START:
                slot.kill()
            slot.playing = slot.call = None
            error, traceback = payload
            raise error from WorkerTracebackError(traceback)

    def _time_out(self, slot: Slot) -> None:
        """Kill a worker whose call takes too long.

        Raises:
            TimeoutError: it is a thread.
        """
        message = f"no answer to {slot.call} within the time limit"
        if not self.settings.threads:
            self._fail(slot, message)
            return
        assert slot.playing is not None
        job_id, slot.playing, slot.call = slot.playing.job.id, None, None
        slot.kill()
        raise TimeoutError(
            f"episode {job_id!r}: {message}. The environment runs in a thread, which cannot be ended: use worker "
            "processes (pool.threads: false), or raise the limit (pool.call_timeout, pool.reset_timeout)"
        )

    def _fail(self, slot: Slot, message: str) -> None:
        """Kill the worker. Its job, if any, is queued again or over."""
        slot.kill()
        failed, slot.playing, slot.call = slot.playing, None, None
        if failed is None:
            return
        failed.failures += 1
        attempts = self.settings.max_attempts
        logger.warning("job %s: attempt %d of %d failed: %s", failed.job.id, failed.failures, attempts, message)
        if failed.failures >= attempts:
            self._events.append(PoolEvent("error", slot.index, failed.job, message))
            return
        self._queue.appendleft(failed)
        if slot.known:
            self._events.append(PoolEvent("lost", slot.index, failed.job, message))

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed")

    def _check_waiting(self, worker: int) -> Slot:
        self._check_open()
        slot = self._slots[worker]
        if slot.playing is None or slot.call is not None:
            raise RuntimeError(f"worker {worker} is not waiting for an action: {slot.call or 'it plays nothing'}")
        return slot
