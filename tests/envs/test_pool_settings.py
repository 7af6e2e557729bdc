"""Settings of the pool: turning each of them changes what the pool does."""

from __future__ import annotations

import functools
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_envs import GROWTH, FakeEnv
from playing import QUICK, assert_ends, play

from lit_rft.envs import EnvPool, EpisodeSpec, PoolEvent, PoolSettings
from lit_rft.envs.memory import group_memory
from lit_rft.envs.slots import StartReport

PATIENT = PoolSettings(call_timeout=120.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"call_timeout": 0}, r"pool\.call_timeout must be > 0 seconds, got 0"),
        ({"reset_timeout": -1}, r"pool\.reset_timeout must be > 0 seconds, got -1"),
        ({"max_attempts": 0}, r"pool\.max_attempts must be >= 1, got 0"),
        ({"episodes_per_worker": -1}, r"pool\.episodes_per_worker must be >= 0 \(0: no limit\), got -1"),
        ({"memory_limit": -1}, r"pool\.memory_limit must be >= 0"),
        ({"memory_limit": 100, "threads": True}, r"pool\.memory_limit=100 needs worker processes"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolSettings(**settings)


def test_a_memory_limit_is_refused_where_memory_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_rft.envs.memory._PROC", Path("/nowhere"))
    PoolSettings()
    with pytest.raises(ValueError, match=r"pool\.memory_limit=100 needs /proc"):
        PoolSettings(memory_limit=100)


def processes(settings: PoolSettings, episodes: int, action: str = "go", env: Any = FakeEnv) -> list[int]:
    """Play episodes one after another on one worker; the process of each."""
    pids = []

    def note(event: PoolEvent, steps: int) -> str:
        if event.kind == "reset":
            pids.append(event.payload[1]["pid"])
        return action if steps == 0 else "go"

    with EnvPool(env, 1, settings) as pool:
        for i in range(episodes):
            pool.submit(EpisodeSpec(str(i)))
        ended, failures = play(pool, note)
    assert not failures and len(ended) == episodes
    return pids


@pytest.mark.parametrize(("limit", "expected"), [(0, [5]), (2, [2, 2, 1]), (1, [1] * 5)])
def test_workers_are_replaced_after_some_episodes(limit: int, expected: list[int], tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = functools.partial(FakeEnv, log=str(log), child=True)
    pids = processes(replace(PATIENT, episodes_per_worker=limit), 5, env=env)
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == expected
    assert sorted(log.read_text().split()) == ["+"] * len(expected) + ["-"] * len(expected)  # each has been closed
    assert_ends(*pids)


@pytest.mark.parametrize("action", ["grow", "grow in a grandchild"])
def test_a_worker_with_too_much_memory_is_replaced_after_its_episode(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    limit = GROWTH  # above what a worker takes at first, below what it takes with it
    assert len(set(processes(replace(PATIENT, memory_limit=2 * limit), 1, action))) == 1
    assert "replacing it" not in caplog.text
    pids = processes(replace(PATIENT, memory_limit=limit), 3, action)
    assert len(set(pids)) == 3  # and none of the three episodes was lost
    assert f"more than memory_limit={limit}: replacing it" in caplog.text
    assert_ends(*pids)


def test_a_worker_with_far_too_much_memory_is_killed_in_mid_episode(caplog: pytest.LogCaptureFixture) -> None:
    pids: list[int] = []

    def note(event: PoolEvent, steps: int) -> str:
        pids.extend([event.payload[1]["pid"]] if event.kind == "reset" else [])
        return "burst" if event.job.id == "bad" and steps == 1 else "go"

    with EnvPool(FakeEnv, 2, replace(PATIENT, memory_limit=GROWTH)) as pool:
        pool.submit(EpisodeSpec("bad"))
        pool.submit(EpisodeSpec("good"))
        ended, failures = play(pool, note)
        assert_ends(pids[0])
    assert list(ended) == ["good"]
    assert [(event.kind, event.job.id) for event in failures] == [("lost", "bad"), ("error", "bad")]
    assert f"more than twice the limit (pool.memory_limit={GROWTH})" in failures[0].payload
    assert "replacing it" not in caplog.text  # the other one was below


def test_memory_is_that_of_the_whole_group() -> None:
    with EnvPool(functools.partial(FakeEnv, child=True), 1, PATIENT) as pool:
        pool.submit(EpisodeSpec("a"))
        (event,) = pool.wait()
        pid = event.payload[1]["pid"]
        before = group_memory(pid)
        pool.step(event.worker, "grow in a grandchild")
        pool.wait()
        grown = group_memory(pid) - before
    assert GROWTH <= grown < GROWTH + 60  # with the interpreter and the shell
    end = time.monotonic() + 10.0
    while group_memory(pid) > 0:  # a killed process takes a moment to go
        assert time.monotonic() < end
    assert group_memory(os.getpgrp()) > 0


def test_environments_start_side_by_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lit_rft")
    # none is made before all of them are being made
    env = functools.partial(FakeEnv, log=str(tmp_path / "log"), meet=3)
    with EnvPool(env, 3, replace(QUICK, reset_timeout=60.0)) as pool:
        for i in range(3):
            pool.submit(EpisodeSpec(str(i)))
        ended, failures = play(pool, lambda event, steps: "go")
    assert len(ended) == 3 and not failures
    assert "3 of 3 environments are ready after" in caplog.text


def test_the_start_is_reported_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lit_rft")
    times = iter([10.0, 11.0, 16.0, 17.0, 18.0])
    report = StartReport(lambda: next(times))
    for index in range(4):
        report.started(index)
    for index in (2, 0, 0, 1, 3, 2):  # replacements among them
        report.ready(index)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4 environments are ready after 6.0 s",
        "4 of 4 environments are ready after 8.0 s",
    ]
