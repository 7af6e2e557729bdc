"""Answers graded in separate processes: a process that hangs or dies costs one verdict, never the run."""

from __future__ import annotations

import atexit
import enum
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

from lit_rft.rewards.template import Template, TemplateError, Worker

_KILLED = object()  # in place of a worker's response
_KILLED_FROM_OUTSIDE = object()  # the same, and the pair has nothing to do with it
_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # its own end is by SIGPROF, or a crash
_ATTEMPTS = 30  # each a fork, and at most the time limit


class Verdict(enum.Enum):
    """The result of grading an answer."""

    RIGHT = "right"
    WRONG = "wrong"
    UNREADABLE = "unreadable"  # no answer, or none that the parser could read
    KILLED = "killed"  # out of CPU time, memory or wall-clock time, or a crash of the process, twice


class VerifierPool:
    """Grade completions in processes that are killed if they take too long; see `verify.grade` and docs/grading.md.

    The limit is CPU time, so that load on the machine changes no verdict, and counts from a process with everything
    imported and warmed up. A pair whose process was killed is retried once while nothing else is graded; up to 30
    times if something else has killed the process, such as the system when it is out of memory.

    Args:
        num_workers: number of processes.
        time_limit: maximum seconds of CPU time per answer.
        wall_limit: maximum wall-clock seconds per answer, for a process that waits instead of computing; generous.
        memory_limit: maximum bytes of address space per process.
        max_characters: number of characters read from the end of a completion; the final answer comes last.
        lenient: see `answers.find_answer`.

    Raises:
        ValueError: For a limit that is not positive.
    """

    def __init__(
        self,
        num_workers: int = 2,
        time_limit: float = 1.0,
        wall_limit: float = 120.0,
        memory_limit: int = 4 << 30,
        max_characters: int = 20_000,
        lenient: bool = False,
    ) -> None:
        limits = {"num_workers": num_workers, "time_limit": time_limit, "wall_limit": wall_limit,
                  "memory_limit": memory_limit, "max_characters": max_characters}  # fmt: skip
        for name, value in limits.items():
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        self.num_workers, self.time_limit, self.wall_limit = num_workers, time_limit, wall_limit
        self.memory_limit, self.max_characters, self.lenient = memory_limit, max_characters, lenient
        self.killed = 0  # pairs without a verdict, since the start
        self.retried = 0  # pairs whose process was killed once
        self._template: Template | None = None
        self._workers: list[Worker] = []
        self._owner = os.getpid()

    def verify(self, golds: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """Grade completions.

        Args:
            golds: ground truths.
            answers: completions, one per ground truth.

        Returns:
            A verdict for each pair, in order.

        Raises:
            ValueError: If the numbers of ground truths and answers differ.
        """
        if len(golds) != len(answers):
            raise ValueError(
                f"expected one ground truth per answer, got {len(golds)} ground truths and {len(answers)} answers"
            )
        texts = [_encodable(answer[-self.max_characters :]) for answer in answers]
        results = self._ask([(_encodable(gold), text, self.lenient) for gold, text in zip(golds, texts, strict=True)])
        self.killed += sum(map(_is_lost, results))
        names = {True: Verdict.RIGHT, False: Verdict.WRONG, None: Verdict.UNREADABLE}
        return [Verdict.KILLED if _is_lost(result) else names[result] for result in results]

    def kinds(self, golds: Sequence[str]) -> list[str | None]:
        """Classify ground truths: see `verify.ground_truth_kind`; None also for those whose process was killed."""
        results = self._ask([(_encodable(gold), None, False) for gold in golds])
        return [None if _is_lost(result) else result for result in results]

    @property
    def process_ids(self) -> list[int]:
        """Ids of the running processes: of the template that forks, then of the workers; empty before the first use."""
        template = [] if self._template is None else [self._template.pid]
        return template + [worker.pid for worker in self._workers]

    def _ask(self, requests: list[tuple[Any, ...]]) -> list[Any]:
        """Return the responses to all requests; those whose process was killed are retried, each alone."""
        results: list[Any] = [_KILLED] * len(requests)
        if not requests:
            return results
        try:
            self._start()
            self._work(requests, range(len(requests)), results, self.num_workers)
            lost = [index for index, result in enumerate(results) if _is_lost(result)]
            self.retried += len(lost)
            for index in lost:
                self._again(requests, index, results)
        except BaseException:  # as Ctrl-C: the next call must not receive the responses that are still due
            self.close()
            raise
        return results

    def _again(self, requests: list[tuple[Any, ...]], index: int, results: list[Any]) -> None:
        """Grade a pair until it has a verdict or has ended its own process twice, in up to 30 attempts."""
        ended_itself = results[index] is _KILLED
        for _ in range(_ATTEMPTS):
            self._work(requests, [index], results, 1)
            if not _is_lost(results[index]) or (ended_itself and results[index] is _KILLED):
                return
            ended_itself = ended_itself or results[index] is _KILLED

    def _start(self) -> None:
        if self._owner != os.getpid():  # a copy in a forked process: the pipes belong to the original
            self._template, self._workers, self._owner = None, [], os.getpid()
        if self._template is None:
            self._template = Template(self.memory_limit)
            atexit.register(self.close)

    def _work(
        self, requests: list[tuple[Any, ...]], indices: Sequence[int], results: list[Any], num_workers: int
    ) -> None:
        waiting = deque(indices)
        while waiting or any(worker.index is not None for worker in self._workers):
            idle = [worker for worker in self._workers if worker.index is None]
            busy = len(self._workers) - len(idle)
            while waiting and busy < num_workers:
                worker = idle.pop() if idle else self._fork()
                deadline = time.monotonic() + self.wall_limit
                index = waiting.popleft()
                worker.send(index, deadline, (self.time_limit, *requests[index]))
                busy += 1
            self._collect(results)

    def _fork(self) -> Worker:
        """Start a worker, from a new template if the old one has died."""
        assert self._template is not None
        try:
            worker = self._template.fork()
        except TemplateError:
            self._template.close()
            self._template = Template(self.memory_limit)
            worker = self._template.fork()
        self._workers.append(worker)
        return worker

    def _collect(self, results: list[Any]) -> None:
        """Wait for the next event: a response, the end of a process, or a missed deadline."""
        busy = [worker for worker in self._workers if worker.index is not None]
        patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
        connections: list[Any] = [worker.connection for worker in busy]
        ready = wait(connections, timeout=patience)
        for worker in busy:
            assert worker.index is not None
            if worker.connection in ready:
                index = worker.index
                try:
                    results[index] = worker.receive()
                except (EOFError, OSError):
                    results[index] = _KILLED_FROM_OUTSIDE if self._end(worker) in _OUTSIDE else _KILLED
            elif time.monotonic() >= worker.deadline:
                results[worker.index] = _KILLED
                self._end(worker)

    def _end(self, worker: Worker) -> int:
        """Kill a worker, and return the signal that ended it."""
        assert self._template is not None
        self._workers.remove(worker)
        number = self._template.end(worker.pid)
        worker.connection.close()
        return number

    def close(self) -> None:
        """Stop the processes; the next use starts new ones."""
        template, workers = self._template, self._workers
        self._template, self._workers = None, []  # first, for an interruption of the lines below
        if template is not None and self._owner == os.getpid():
            template.close()
            for worker in workers:
                worker.connection.close()
        atexit.unregister(self.close)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a VerifierPool holds processes and cannot be pickled: create one in each process")


def _is_lost(result: Any) -> bool:
    return result is _KILLED or result is _KILLED_FROM_OUTSIDE


def _encodable(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded and are part of no answer."""
    return text.encode("utf-8", "replace").decode()
