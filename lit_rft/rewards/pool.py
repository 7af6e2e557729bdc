"""Answers compared in processes of their own: one that hangs or dies costs one verdict, never the run."""

import atexit
import contextlib
import enum
import multiprocessing
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

from lit_rft.rewards import worker as worker_module


class Verdict(enum.Enum):
    """What became of an answer."""

    RIGHT = "right"
    WRONG = "wrong"
    UNREADABLE = "unreadable"  # no answer was found, or the parser gave up
    KILLED = "killed"  # the process hung, ran out of memory or crashed


class _Worker:
    """One process, with what it is working on."""

    def __init__(self, context: Any, memory_limit: int) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=worker_module.main, args=(theirs, memory_limit), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.index: int | None = None
        self.deadline = float("inf")

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class VerifierPool:
    """Compares answers with ground truths by Math-Verify, in processes that are killed when they take too long.

    Processes start with the first use, and come from a server process that has the parsers imported: a killed one is
    replaced in a tenth of a second.

    Args:
        num_workers: processes.
        time_limit: seconds that one answer may take.
        memory_limit: bytes of address space of each process.
        max_characters: of an answer's end are looked at; the final answer stands last.
    Raises: ValueError for a limit that is not positive.
    """

    def __init__(
        self,
        num_workers: int = 2,
        time_limit: float = 1.0,
        memory_limit: int = 4 << 30,
        max_characters: int = 20_000,
    ) -> None:
        limits = {"num_workers": num_workers, "time_limit": time_limit, "memory_limit": memory_limit,
                  "max_characters": max_characters}  # fmt: skip
        for name, value in limits.items():
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        self.num_workers, self.time_limit = num_workers, time_limit
        self.memory_limit, self.max_characters = memory_limit, max_characters
        self.killed = 0  # verdicts that cost a process, since the start
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["lit_rft.rewards.verify"])
        self._workers: list[_Worker] = []
        atexit.register(self.close)

    def verify(self, golds: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """A verdict for each pair, in order.

        Raises: ValueError if there are not as many ground truths as answers.
        """
        if len(golds) != len(answers):
            raise ValueError(f"each answer needs a ground truth: got {len(answers)} and {len(golds)}")
        waiting = deque(range(len(answers)))
        verdicts: list[Verdict | None] = [None] * len(answers)
        while any(verdict is None for verdict in verdicts):
            self._fill(min(self.num_workers, len(answers)))
            for one in self._workers:
                if one.ready and one.index is None and waiting:
                    self._give(one, waiting.popleft(), golds, answers)
            self._take(verdicts)
        return [verdict for verdict in verdicts if verdict is not None]

    def _fill(self, number: int) -> None:
        while len(self._workers) < number:
            self._workers.append(_Worker(self._context, self.memory_limit))

    def _give(self, one: _Worker, index: int, golds: Sequence[str], answers: Sequence[str]) -> None:
        one.index, one.deadline = index, time.monotonic() + self.time_limit
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died while idle: reading from it says so
            one.connection.send((golds[index], _plain(answers[index][-self.max_characters :])))

    def _take(self, verdicts: list[Verdict | None]) -> None:
        """Wait until something happens: an answer, a death, or the end of somebody's time."""
        patience = max(0.0, min(one.deadline for one in self._workers) - time.monotonic())
        connections: list[Any] = [one.connection for one in self._workers]
        told = wait(connections, timeout=None if patience == float("inf") else patience)
        for one in list(self._workers):
            if one.connection in told:
                self._hear(one, verdicts)
            elif time.monotonic() >= one.deadline:
                self._lose(one, verdicts)

    def _hear(self, one: _Worker, verdicts: list[Verdict | None]) -> None:
        try:
            said = one.connection.recv()
        except (EOFError, OSError):
            self._lose(one, verdicts)
            return
        if not one.ready:
            one.ready = True
            return
        assert one.index is not None
        verdicts[one.index] = {True: Verdict.RIGHT, False: Verdict.WRONG}.get(said, Verdict.UNREADABLE)
        one.index, one.deadline = None, float("inf")

    def _lose(self, one: _Worker, verdicts: list[Verdict | None]) -> None:
        if not one.ready:
            self.close()
            raise RuntimeError(
                "a verifier process ended before its first answer: is math-verify installed? (lit-rft[math])"
            )
        one.kill()
        self._workers.remove(one)
        if one.index is not None:
            verdicts[one.index] = Verdict.KILLED
            self.killed += 1

    def close(self) -> None:
        """End the processes."""
        for one in self._workers:
            one.kill()
        self._workers = []
        atexit.unregister(self.close)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a VerifierPool holds processes and cannot be pickled: make one in each process")


def _plain(text: str) -> str:
    """Lone surrogates cannot be sent; they are no part of any answer."""
    return text.encode("utf-8", "replace").decode()
