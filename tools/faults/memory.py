"""Memory over many episodes: no process grows by more than five percent after its warm-up."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from faults import runs, simulators
from faults.trial import Tally, Trial, expect
from lit_rft.envs import collect
from lit_rft.envs.collect import collect_expert_episodes
from lit_rft.envs.memory import group_memory
from lit_rft.envs.pool import EnvPool

_GROWTH = 1.05
_WARM_UP = 0.25  # share of the episodes


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield collection by an expert, and play by a model."""
    number = 100 if short else 2000
    if not short:
        yield Trial("memory", f"{number} episodes collected", functools.partial(collected, number), 1800)
    yield Trial("memory", f"{number} episodes played by a model", functools.partial(played, shared, number), 1800)


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def check_growth(curves: dict[str, list[tuple[float, float]]]) -> Tally:
    """Compare each process's memory at the end of its warm-up and at the end.

    Args:
        curves: name of a process -> (share of the episodes, MiB).
    """
    notes, grown = [], 0
    for name, curve in sorted(curves.items()):
        after = [memory for share, memory in curve if share >= _WARM_UP]
        if len(after) < 4:
            continue
        first, last = sum(after[:2]) / 2, sum(after[-2:]) / 2
        notes.append(f"{name} {first:.0f} -> {last:.0f} MiB")
        grown += last > first * _GROWTH
    expect(notes, "no process was measured")
    return Tally(len(notes), len(notes) - grown, ", ".join(notes))


def collected(number: int, folder: Path) -> Tally:
    """Collect episodes with four worker processes, measuring them and this process."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    pools: list[EnvPool] = []

    class KnownPool(EnvPool):
        def __init__(self, make_env: object, num_workers: int) -> None:
            super().__init__(make_env, num_workers)  # type: ignore[arg-type]
            pools.append(self)

    collect.EnvPool = KnownPool  # type: ignore[misc]
    simulators._PAUSE = 0.0
    suite, path, done = simulators.make_suite(number), folder / "episodes.jsonl", threading.Event()

    def measure() -> None:
        while not done.wait(1.0):
            partial = path.with_name(path.name + ".partial")
            share = partial.read_bytes().count(b"\n") / number if partial.exists() else 0.0
            curves["this process"].append((share, resident(os.getpid())))
            for worker in range(4 if pools else 0):
                pid = pools[0].process_id(worker)
                if pid is not None:
                    curves[f"worker {pid}"].append((share, group_memory(pid)))

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    episodes = collect_expert_episodes(suite, suite.episodes("train"), path, num_workers=4, progress=False)
    done.set()
    thread.join()
    expect(len(episodes) == number, f"{len(episodes)} of {number} episodes")
    return check_growth(curves)


def played(shared: Path, number: int, folder: Path) -> Tally:
    """Play episodes with a model in `lit-rft predict`, measuring its process."""
    inputs = runs.prepare(shared / "inputs")
    more = {"data": {"init_args": {"predict_episodes_per_task": number,
                                   "suite": {"class_path": "lit_rft.envs.GymSuite",
                                             "init_args": {"env": "lit_rft.envs.games.GuessNumber", "step_limit": 3,
                                                           "seeds": {"train": number, "dev": 3}}}}}}  # fmt: skip
    arguments = runs.command("episodes", inputs, folder / "run", "-c", json.dumps(more), verb="predict")
    child = runs.start(arguments, folder / "run.log")
    curve: list[tuple[float, float]] = []
    path = folder / "run" / "episodes" / "predicted.jsonl"
    while child.poll() is None:
        share = path.read_bytes().count(b"\n") / number if path.exists() else 0.0
        if share > 0 and (memory := resident(child.pid)):  # a process that has ended has none
            curve.append((share, memory))
        time.sleep(1.0 if number > 500 else 0.05)
    runs.finish(child)
    done = path.read_bytes().count(b"\n")
    expect(done == number, f"{done} of {number} episodes")
    return check_growth({"this process": curve})
