"""Helpers of the pool's tests: a consumer, and what is running."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lit_rft.envs import EnvPool, PoolEvent, PoolSettings

QUICK = PoolSettings(call_timeout=1.0, reset_timeout=10.0)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_ends(*pids: int, timeout: float = 10.0) -> None:
    end = time.monotonic() + timeout
    while any(map(is_running, pids)):
        assert time.monotonic() < end, f"of the processes {pids} one is still there"
        time.sleep(0.02)


def group(leader: int | None, name: str) -> list[int]:
    """Processes called `name` in a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = path.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if head.split("(")[1] == name and int(tail.split()[2]) == leader:
            found.append(int(path.parent.name))
    return found


def play(pool: EnvPool, action: Callable[[PoolEvent, int], str]) -> tuple[dict[str, list[str]], list[PoolEvent]]:
    """Play all jobs of a pool; `action` gets the event and the number of steps played before.

    Returns the observations of each job that ended by itself (asserting that it ends once), and the other events.
    """
    playing: dict[str, list[str]] = {}
    ended: dict[str, list[str]] = {}
    failures = []
    while pool.outstanding:
        for event in pool.wait():
            name = event.job.id
            assert name not in ended
            if event.kind == "reset":
                assert name not in playing
                playing[name] = []
            elif event.kind == "step":
                playing[name].append(event.payload[0])
                if event.payload[2] or event.payload[3]:
                    ended[name] = playing.pop(name)
                    pool.finish(event.worker)
                    continue
            else:
                failures.append(event)
                playing.pop(name, None)
                continue
            pool.step(event.worker, action(event, len(playing[name])))
    assert not playing
    return ended, failures
