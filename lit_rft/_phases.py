"""Phases of a training step: their seconds, and the progress of the current one."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any


class Phases:
    """Seconds by phase, such as `rollout`, `reward` and `update`; a phase within another one counts for itself only."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._inner = 0.0  # seconds of phases within the current one
        self._current = ""
        self._progress: tuple[int, int] | None = None  # of the current phase

    @property
    def status(self) -> str:
        """The current phase, with its progress if it is known: `rollout 23/56`; empty between phases."""
        name, progress = self._current, self._progress
        return f"{name} {progress[0]}/{progress[1]}" if name and progress else name

    def report(self, done: int, total: int) -> None:
        """Set the progress of the current phase."""
        self._progress = done, total

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the time of the block for a phase."""
        started, outer = time.perf_counter(), self._inner
        around = self._current, self._progress
        self._inner, self._current, self._progress = 0.0, name, None
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + elapsed - self._inner
            self._inner = outer + elapsed
            self._current, self._progress = around

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call."""
        seconds, self._seconds, self._inner = self._seconds, {}, 0.0
        return seconds


def measured(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Count the time of a method, whose first argument is the policy, for a phase of `Policy.phases`."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(self: Any, policy: Any, *args: Any, **options: Any) -> Any:
            with policy.phases.measure(name):
                return method(self, policy, *args, **options)

        return timed

    return decorate
