"""The worker pool: its logic with a fake environment, its point with real simulators that are killed and stopped."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch  # noqa: F401  (the workers must not load it even where their parent has)
from fake_envs import FakeEnv
from playing import QUICK, assert_ends, group, play

from lit_rft.envs import ContractError, EnvPool, EpisodeSpec, PoolEvent, PoolSettings, ScienceWorldEnv


def test_every_job_is_played_once_and_without_torch() -> None:
    infos = {}

    def action(event: PoolEvent, steps: int) -> str:
        if event.kind == "reset":
            infos[event.job.id] = event.payload[1]
        return f"{event.job.id}:{steps}"

    with EnvPool(FakeEnv, 2, QUICK) as pool:
        for i in range(5):
            pool.submit(EpisodeSpec(str(i)))
        assert pool.outstanding == 5
        ended, failures = play(pool, action)
        assert pool.wait() == []
        pids = {info["pid"] for info in infos.values()}
        assert {pool.process_id(0), pool.process_id(1)} == pids
    assert not failures
    assert ended == {str(i): [f"{i}:{k}" for k in range(3)] for i in range(5)}
    assert not any(info["torch"] for info in infos.values())
    assert_ends(*pids)


def test_a_slow_worker_does_not_hold_up_the_others(tmp_path: Path) -> None:
    with EnvPool(FakeEnv, 2, PoolSettings(call_timeout=3600.0)) as pool:
        pool.submit(EpisodeSpec("slow"))
        (event,) = pool.wait()
        slow = event.worker
        pool.step(slow, "hang")
        pool.submit(EpisodeSpec("quick"))
        kinds = []
        while pool.outstanding > 1:
            (event,) = pool.wait(timeout=10)
            assert event.job.id == "quick"
            kinds.append(event.kind)
            pool.finish(event.worker) if event.kind == "step" and event.payload[2] else pool.step(event.worker, "go")
        assert kinds == ["reset", "step", "step", "step"]
        assert pool.wait(timeout=0.05) == []
        hanging = pool.process_id(slow)
    assert hanging is not None
    assert_ends(hanging)  # not waited for: its call has an hour


@pytest.mark.parametrize("failure", ["die", "hang", "stop", "raise", "bad", "unpicklable"])
def test_a_failed_step_is_played_again(failure: str, tmp_path: Path) -> None:
    marker = tmp_path / "failed"

    def action(event: PoolEvent, steps: int) -> str:
        if event.job.id == "1" and steps == 1 and not marker.exists():
            marker.touch()
            return failure
        return f"{event.job.id}:{steps}"

    with EnvPool(FakeEnv, 2, QUICK) as pool:
        for i in range(3):
            pool.submit(EpisodeSpec(str(i)))
        ended, failures = play(pool, action)
    assert ended == {str(i): [f"{i}:{k}" for k in range(3)] for i in range(3)}
    assert [(event.kind, event.job.id) for event in failures] == [("lost", "1")]
    words = {"die": "died", "hang": "time limit", "stop": "time limit", "raise": "the fake failed", "bad": "refuses"}
    assert words.get(failure, "cannot be sent") in failures[0].payload


def test_a_failed_reset_is_tried_again_without_an_event(tmp_path: Path) -> None:
    with EnvPool(FakeEnv, 1, QUICK) as pool:
        pool.submit(EpisodeSpec("a", options={"do": f"once:{tmp_path / 'marker'}:die"}))
        ended, failures = play(pool, lambda event, steps: "go")
    assert list(ended) == ["a"]
    assert not failures


@pytest.mark.parametrize("max_attempts", [1, 2])
def test_attempts_end_with_an_error_and_the_run_goes_on(max_attempts: int) -> None:
    with EnvPool(FakeEnv, 1, replace(QUICK, max_attempts=max_attempts)) as pool:
        pool.submit(EpisodeSpec("bad"))
        pool.submit(EpisodeSpec("good"))
        ended, failures = play(pool, lambda event, steps: "die" if event.job.id == "bad" else "go")
        assert pool.outstanding == 0
    assert ended == {"good": ["go"] * 3}
    assert [event.kind for event in failures] == ["lost"] * (max_attempts - 1) + ["error"]
    assert {event.job.id for event in failures} == {"bad"}


def test_a_worker_that_dies_while_it_waits_loses_its_episode() -> None:
    with EnvPool(FakeEnv, 1, QUICK) as pool:
        pool.submit(EpisodeSpec("a"))
        (event,) = pool.wait()
        os.kill(event.payload[1]["pid"], signal.SIGKILL)
        assert_ends(event.payload[1]["pid"])
        pool.step(event.worker, "go")  # not noticed yet
        assert [event.kind for event in pool.wait()] == ["lost"]
        assert pool.wait(timeout=0) == []  # a new worker is being started
        with pytest.raises(RuntimeError, match="not waiting for an action: reset"):
            pool.step(event.worker, "go")
        ended, _ = play(pool, lambda event, steps: "go")
    assert list(ended) == ["a"]


def test_a_worker_that_dies_between_episodes_costs_the_next_one_no_attempt() -> None:
    with EnvPool(FakeEnv, 1, replace(QUICK, max_attempts=1)) as pool:
        for name in ("first", "second"):
            pool.submit(EpisodeSpec(name))
        reset = []
        while pool.outstanding:
            for event in pool.wait():
                assert event.kind == "reset"
                reset.append(event.job.id)
                pid = pool.process_id(event.worker)
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                assert_ends(pid)
                pool.finish(event.worker)
        assert reset == ["first", "second"]


def test_bad_options_are_raised_and_the_run_can_go_on() -> None:
    with EnvPool(FakeEnv, 1, QUICK) as pool:
        pool.submit(EpisodeSpec("bad", options={"do": "bad"}))
        pool.submit(EpisodeSpec("good"))
        with pytest.raises(ValueError, match="the fake refuses"):
            pool.wait()
        assert pool.outstanding == 1
        ended, failures = play(pool, lambda event, steps: "go")
    assert list(ended) == ["good"]
    assert not failures


def test_an_answer_of_the_wrong_form_is_raised_and_the_run_can_go_on() -> None:
    with EnvPool(FakeEnv, 1, QUICK) as pool:
        pool.submit(EpisodeSpec("a"))
        (event,) = pool.wait()
        pool.step(event.worker, "no number")
        with pytest.raises(
            ContractError, match=r"FakeEnv\.step must return a finite number as info\['metrics'\]\['moves'\]"
        ):
            pool.wait()
        assert pool.outstanding == 0
        pool.submit(EpisodeSpec("b"))
        assert [event.kind for event in pool.wait()] == ["reset"]


def test_an_environment_that_cannot_be_made_is_raised() -> None:
    with EnvPool(functools.partial(FakeEnv, start_error="no room"), 1, QUICK) as pool:
        pool.submit(EpisodeSpec("a"))
        with pytest.raises(OSError, match="no room"):
            pool.wait()
        assert pool.outstanding == 0


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        EnvPool(FakeEnv, 0)
    with pytest.raises(ValueError, match="make_env must be picklable"):
        EnvPool(lambda: FakeEnv(), 1)
    pool = EnvPool(FakeEnv, 1, QUICK)
    assert pool.wait() == []
    pool.submit(EpisodeSpec("a"))
    with pytest.raises(ValueError, match="the id 'a' is outstanding already"):
        pool.submit(EpisodeSpec("a"))
    with pytest.raises(RuntimeError, match="not waiting for an action"):
        pool.finish(0)
    assert [event.kind for event in pool.wait()] == ["reset"]
    with pytest.raises(RuntimeError, match="nothing to wait for"):
        pool.wait()
    assert pool.wait(timeout=0) == []  # a question, not a wait
    pool.close()
    pool.close()
    for call in (pool.wait, lambda: pool.submit(EpisodeSpec("b")), lambda: pool.step(0, "go")):
        with pytest.raises(RuntimeError, match="the pool is closed"):
            call()


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """Also one whose environment hangs, together with what the environment has started."""
    code = (
        "import os, signal, functools\nfrom fake_envs import FakeEnv\nfrom lit_rft.envs import EnvPool, EpisodeSpec\n"
        "pool = EnvPool(functools.partial(FakeEnv, child=True), 2)\n"
        "pool.submit(EpisodeSpec('a'))\npool.submit(EpisodeSpec('b'))\n"
        "events = pool.wait()\nwhile len(events) < 2:\n    events += pool.wait()\n"
        "pool.step(events[0].worker, 'hang')\n"
        "print(*[event.payload[1][key] for event in events for key in ('pid', 'child')], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    # A file takes the output: a pipe would stay open as long as a worker lives, and so would this call.
    output = tmp_path / "pids"
    with output.open("w") as stdout:
        environ = {**os.environ, "PYTHONPATH": path}
        child = subprocess.run([sys.executable, "-c", code], stdout=stdout, env=environ, check=False, timeout=60)
    assert child.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in output.read_text().split()]
    assert len(pids) == 4
    assert_ends(*pids)


@pytest.mark.slow  # four starts of the simulator
def test_simulators_are_killed_and_stopped_in_mid_episode(caplog: pytest.LogCaptureFixture) -> None:
    """One Java process is killed, another stopped: both are replaced, and every job ends once, with all its steps."""
    harmed: dict[str, int] = {}
    signals = {"0": signal.SIGKILL, "1": signal.SIGSTOP}

    def action(event: PoolEvent, steps: int) -> str:
        if steps == 2 and event.job.id in signals and event.job.id not in harmed:
            (java,) = group(pool.process_id(event.worker), "java")
            harmed[event.job.id] = java
            os.kill(java, signals[event.job.id])
        return f"examine {event.job.id}"

    make_env = functools.partial(ScienceWorldEnv, step_limit=5)
    with EnvPool(make_env, 2, PoolSettings(call_timeout=5.0)) as pool:
        for i in range(4):
            pool.submit(EpisodeSpec(str(i), options={"task": "find-plant", "variation": i}))
        ended, failures = play(pool, action)
        assert_ends(*harmed.values())
        javas = [java for worker in range(2) for java in group(pool.process_id(worker), "java")]
    assert {name: len(steps) for name, steps in ended.items()} == {str(i): 5 for i in range(4)}
    assert Counter((event.kind, event.job.id) for event in failures) == {("lost", "0"): 1, ("lost", "1"): 1}
    assert "has ended: make a new ScienceWorldEnv" in caplog.text
    assert "no answer to step within the time limit" in caplog.text
    assert javas
    assert_ends(*javas)


def test_a_simulators_bad_options_reach_the_consumer() -> None:
    with EnvPool(ScienceWorldEnv, 1) as pool:
        pool.submit(EpisodeSpec("a", options={"task": "find-plnt", "variation": 0}))
        with pytest.raises(ValueError, match="unknown task 'find-plnt'; did you mean: find-plant"):
            pool.wait()
