"""Where a signal's exception may be raised: nowhere that it could leave a lock held, and soon everywhere else."""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lit_rft.callbacks.signals import StoppedBySignal, StopSignals

send = functools.partial(os.kill, os.getpid(), signal.SIGTERM)  # no frame of Python's: it arrives in that of its caller


@pytest.fixture
def arrived() -> Iterator[list[int]]:
    """Signals that reached the handler from before."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored
    yield numbers
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, interrupt)


@pytest.fixture
def signals(arrived: list[int]) -> Iterator[StopSignals]:
    handlers = StopSignals()
    handlers.install()
    yield handlers
    handlers.restore()


def wait() -> None:
    for _ in range(10_000):
        time.sleep(0.001)
    pytest.fail("no exception in 10 s")


def function_of(module: str, name: str = "use", body: str = "send()") -> Callable[..., None]:
    """A function that takes and releases something, as code of a module."""
    content: dict[str, Any] = {"__name__": module, "time": time, "send": send}
    lines = [f"def {name}(steps):", "    steps.append('acquired')", f"    {body}", "    steps.append('released')"]
    exec("\n".join(lines), content)
    function: Callable[..., None] = content[name]
    return function


@pytest.mark.parametrize(
    "module", ["threading", "logging", "queue", "multiprocessing.pool", "rich.live", "subprocess", "concurrent.futures"]
)
def test_code_that_takes_locks_is_left_first(module: str, signals: StopSignals) -> None:
    steps: list[str] = []
    with pytest.raises(StoppedBySignal, match="143"):
        function_of(module)(steps)
        wait()
    assert steps == ["acquired", "released"]


@pytest.mark.parametrize("module", ["my_stage", "lightning.pytorch.loops", "threading_tools"])
def test_other_code_is_left_at_once(module: str, signals: StopSignals) -> None:
    steps: list[str] = []
    with pytest.raises(StoppedBySignal, match="143"):
        function_of(module)(steps)
    assert steps == ["acquired"]


def test_a_condition_that_is_being_entered_is_released(signals: StopSignals) -> None:
    """Python's own: the signal comes right after its lock is acquired, before the block that releases it."""
    steps: list[str] = []
    lock: Any = SimpleNamespace(
        acquire=None, release=None, __enter__=send, __exit__=lambda *error: steps.append("released")
    )
    with pytest.raises(StoppedBySignal):
        with threading.Condition(lock):
            steps.append("entered")
        wait()
    assert steps == ["entered", "released"]


def test_a_call_that_blocks_is_interrupted(signals: StopSignals) -> None:
    main = threading.get_ident()
    timer = threading.Timer(0.05, functools.partial(signal.pthread_kill, main, signal.SIGTERM))
    timer.start()
    with pytest.raises(StoppedBySignal):
        threading.Event().wait(60)
        pytest.fail("the wait ended without an exception")
    timer.join()


def test_a_start_is_finished_even_if_it_takes_long(signals: StopSignals) -> None:
    """Otherwise a thread would run that nobody knows of, and nobody ends."""
    steps: list[str] = []
    with pytest.raises(StoppedBySignal):
        function_of("threading", "start", "send(); time.sleep(0.15)")(steps)
        wait()
    assert steps == ["acquired", "released"]


def test_earlier_handlers_get_no_postponed_signal(signals: StopSignals, arrived: list[int]) -> None:
    function_of("threading")([])
    signals.restore()
    time.sleep(0.1)
    assert arrived == []
    with pytest.raises(StoppedBySignal):
        signals.check()
    send()
    assert arrived == [signal.SIGTERM]


def test_a_postponed_signal_is_kept_while_held(signals: StopSignals) -> None:
    function_of("threading")([])
    signals.held = True
    time.sleep(0.1)
    with pytest.raises(StoppedBySignal):
        signals.release()
    time.sleep(0.1)  # raised once, and not again while the run is saved


def test_a_signal_repeated_by_the_handlers_is_no_second_interrupt(signals: StopSignals) -> None:
    body = f"__import__('os').kill({os.getpid()}, {int(signal.SIGINT)})"
    with pytest.raises(StoppedBySignal, match="130"):
        function_of("threading", body=body)([])
        wait()
