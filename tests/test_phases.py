"""Seconds of phases, with a clock of the test."""

from types import SimpleNamespace
from typing import Any

import pytest

from lit_rft import _phases
from lit_rft._phases import Phases, measured


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that the test sets."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(_phases.time, "perf_counter", lambda: clock.now)
    return clock


def test_an_inner_phase_is_no_part_of_the_outer_one(clock: Any) -> None:
    phases = Phases()
    with phases.measure("rollout"):
        clock.now += 1
        with phases.measure("reward"):
            clock.now += 10
            with phases.measure("rollout"):
                clock.now += 100
        with phases.measure("reward"):
            clock.now += 1000
        clock.now += 10000
    with phases.measure("rollout"):
        clock.now += 100000
    assert phases.take() == {"rollout": 110101.0, "reward": 1010.0}
    assert phases.take() == {}


def test_a_phase_that_fails_counts(clock: Any) -> None:
    phases = Phases()
    with phases.measure("update"):
        with pytest.raises(ValueError), phases.measure("rollout"):
            clock.now += 1
            raise ValueError
        clock.now += 2
    assert phases.take() == {"rollout": 1.0, "update": 2.0}


def test_the_status_is_the_inner_phase_with_its_own_progress() -> None:
    phases = Phases()
    assert phases.status == ""
    phases.report(1, 2)  # outside of any phase
    assert phases.status == ""
    with phases.measure("rollout"):
        assert phases.status == "rollout"
        phases.report(3, 8)
        with phases.measure("reward"):
            assert phases.status == "reward"
        assert phases.status == "rollout 3/8"
    assert phases.status == ""


def test_a_measured_method_keeps_arguments_and_result(clock: Any) -> None:
    class Source:
        @measured("rollout")
        def sample(self, policy: Any, number: int, *, seed: int) -> tuple[int, int]:
            """Sample."""
            clock.now += 3
            return number, seed

    policy = SimpleNamespace(phases=Phases())
    assert Source().sample(policy, 4, seed=5) == (4, 5)
    assert policy.phases.take() == {"rollout": 3.0} and Source.sample.__doc__ == "Sample."
