"""Environments in threads: the same pool, as far as threads allow."""

from __future__ import annotations

import functools
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_envs import FakeEnv
from playing import QUICK, play

from lit_rft.envs import EnvPool, EnvPools, EpisodeSpec, PoolEvent

RELEASED = threading.Event()
THREADS = replace(QUICK, call_timeout=60.0, threads=True)


class Hanging(FakeEnv):
    """Hangs until it is released."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        RELEASED.wait()
        return super().step(action)


def workers() -> int:
    return sum(thread.name == "environment" for thread in threading.enumerate())


def assert_threads_end() -> None:
    for thread in threading.enumerate():
        if thread.name == "environment":
            thread.join(10.0)
            assert not thread.is_alive()


def test_every_job_is_played_once_in_this_process(tmp_path: Path) -> None:
    pids = set()

    def action(event: PoolEvent, steps: int) -> str:
        if event.kind == "reset":
            pids.add(event.payload[1]["pid"])
        return f"{event.job.id}:{steps}"

    log = tmp_path / "log"
    with EnvPool(functools.partial(FakeEnv, log=str(log)), 2, THREADS) as pool:
        for i in range(5):
            pool.submit(EpisodeSpec(str(i)))
        ended, failures = play(pool, action)
        assert workers() == 2 and pool.process_id(0) is None
    assert ended == {str(i): [f"{i}:{k}" for k in range(3)] for i in range(5)} and not failures
    assert pids == {os.getpid()}
    assert log.read_text().split() == ["+", "+", "-", "-"]
    assert_threads_end()


@pytest.mark.parametrize("failure", ["raise", "bad", "unpicklable"])
def test_a_failed_step_is_played_again(failure: str, tmp_path: Path) -> None:
    def action(event: PoolEvent, steps: int) -> str:
        fails = event.job.id == "1" and steps == 1 and not (tmp_path / "failed").exists()
        (tmp_path / "failed").touch() if fails else None
        return failure if fails else "go"

    with EnvPool(FakeEnv, 2, THREADS) as pool:
        for i in range(3):
            pool.submit(EpisodeSpec(str(i)))
        ended, failures = play(pool, action)
    assert sorted(ended) == ["0", "1", "2"]
    assert [(event.kind, event.job.id) for event in failures] == [("lost", "1")]
    assert_threads_end()


def test_bad_options_and_bad_arguments_are_raised() -> None:
    with EnvPool(FakeEnv, 1, THREADS) as pool:
        pool.submit(EpisodeSpec("bad", options={"do": "bad"}))
        with pytest.raises(ValueError, match="the fake refuses"):
            pool.wait()
    with EnvPool(functools.partial(FakeEnv, start_error="no room"), 1, THREADS) as pool:
        pool.submit(EpisodeSpec("a"))
        with pytest.raises(OSError, match="no room"):
            pool.wait()


def test_environments_are_replaced_after_some_episodes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with EnvPool(functools.partial(FakeEnv, log=str(log)), 1, replace(THREADS, episodes_per_worker=2)) as pool:
        for i in range(5):
            pool.submit(EpisodeSpec(str(i)))
        ended, _ = play(pool, lambda event, steps: "go")
    assert len(ended) == 5
    assert log.read_text().count("+") == 3


def test_a_hanging_environment_ends_the_run() -> None:
    """No thread can be killed: the pool says so, and goes on without it."""
    with EnvPool(Hanging, 1, replace(THREADS, call_timeout=0.2)) as pool:
        pool.submit(EpisodeSpec("stuck"))
        (event,) = pool.wait()
        pool.step(event.worker, "go")
        with pytest.raises(TimeoutError, match=r"episode 'stuck': no answer to step .* which cannot be ended"):
            pool.wait()
        assert pool.outstanding == 0 and workers() == 1
        pool.submit(EpisodeSpec("next"))
        assert [event.kind for event in pool.wait()] == ["reset"]
    RELEASED.set()
    assert_threads_end()  # once the call returns


def test_pools_of_threads_are_chosen_by_their_settings() -> None:
    """Also for a factory of the running script, which no other process could import."""
    Script = type("Script", (FakeEnv,), {"__module__": "__main__", "__qualname__": "Script"})
    main = sys.modules["__main__"]
    vars(main)["Script"] = Script
    try:
        assert EnvPools(1, THREADS).get(Script).settings.threads
        with pytest.raises(ValueError, match="defined in the running script"):
            EnvPools(1, QUICK).get(Script)
        with pytest.raises(ValueError, match="defined in the running script"):
            EnvPools(1, QUICK).get(functools.partial(FakeEnv, Script))
    finally:
        del vars(main)["Script"]
