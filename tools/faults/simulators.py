"""Killed and stopped simulators in one collection: every episode once, with all its steps."""

from __future__ import annotations

import functools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
from forked import Child

from faults.trial import Tally, Trial, expect
from lit_rft.envs import GymSuite, PoolSettings, collect
from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.collect import collect_expert_episodes
from lit_rft.envs.memory import group_memory
from lit_rft.envs.pool import EnvPool
from lit_rft.episodes import read_episodes

STEPS = 12
_PAUSE = 0.01  # seconds per step, so that kills meet episodes


class Countdown(gym.Env[str, str]):
    """Counts down; the expert plays to the end."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.left, self.seed = STEPS, seed
        return f"{self.left} left of {seed}", {"task_description": "count down"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(_PAUSE)
        self.left -= action == f"count {self.left}"
        return f"{self.left} left of {self.seed}", 1 / STEPS, self.left == 0, False, {}


def expert(observation: str, info: dict[str, Any]) -> str:
    """Return the action that counts down."""
    return f"count {observation.split()[0]}"


def script(spec: EpisodeSpec) -> list[str]:
    """Return the actions that count down."""
    return [f"count {number}" for number in range(STEPS, 0, -1)]


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield collections with killed and stopped workers, a killed collection, and one with Java processes."""
    kills, stops, episodes = (4, 1, 30) if short else (100, 20, 1800)
    harm = functools.partial(harmed_collection, kills, stops, episodes, seed, all_of_them=not short)
    yield Trial("simulators", f"{kills} killed and {stops} stopped in one collection", harm, 1500)
    if not short:
        yield Trial("simulators", "the collection itself killed 5 times", functools.partial(killed_collection, seed))
        yield Trial("simulators", "Java of ScienceWorld killed and stopped", functools.partial(java, seed), 900)


class Harm(threading.Thread):
    """Kills or stops workers of a pool at random moments, from another thread.

    Args:
        pool: whose workers are harmed.
        signals: in the order in which they are sent.
        seed: of moments and workers.
        pause: longest seconds between two of them.
    """

    def __init__(self, pool: EnvPool, signals: list[int], seed: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.pool, self.signals, self.pause = pool, signals, pause
        self.rng, self.sent, self.closed = random.Random(seed), Counter(), False  # type: ignore[var-annotated]
        self.harmed: set[int] = set()

    def run(self) -> None:
        while self.signals and not self.closed:
            time.sleep(self.rng.uniform(0, self.pause))
            pid = self.pool.process_id(self.rng.randrange(len(self.pool._slots)))
            if pid is None or pid in self.harmed or not busy(pid):
                continue
            try:
                os.killpg(pid, self.signals[-1])
            except ProcessLookupError:
                continue
            self.harmed.add(pid)
            self.sent[self.signals.pop()] += 1


def busy(pid: int) -> bool:
    """Return whether a worker has begun to play: its interpreter has loaded the environment."""
    return group_memory(pid) > 25


def collect_under(harm: Callable[[EnvPool], Harm], settings: PoolSettings, suite: GymSuite, path: Path,
                  number: int, workers: int) -> tuple[list[Any], Harm]:  # fmt: skip
    """Collect episodes while workers are harmed; a second call retries what failed twice."""
    threads: list[Harm] = []

    class HarmedPool(EnvPool):
        def __init__(self, make_env: Any, num_workers: int) -> None:
            super().__init__(make_env, num_workers, settings)
            threads.append(harm(self))
            threads[-1].start()

        def close(self) -> None:
            threads[-1].closed = True
            threads[-1].join()
            super().close()

    collect.EnvPool = HarmedPool  # type: ignore[misc]
    specs = suite.episodes("train", limit=number)
    collect_expert_episodes(suite, specs, path, num_workers=workers, progress=False)
    collect.EnvPool = EnvPool  # type: ignore[misc]
    return collect_expert_episodes(suite, specs, path, num_workers=workers, progress=False), threads[0]


def make_suite(number: int) -> GymSuite:
    """Return a suite of countdowns."""
    return GymSuite("faults.simulators.Countdown", step_limit=STEPS + 1, seeds={"train": number}, script=script)


def check_countdowns(path: Path, number: int) -> None:
    """Check that a file has each episode once, with all its steps in order."""
    episodes = read_episodes(path)
    expect(
        len({episode.id for episode in episodes}) == len(episodes) == number, f"{len(episodes)} of {number} episodes"
    )
    for episode in episodes:
        expect([step.action for step in episode.steps] == [f"count {n}" for n in range(STEPS, 0, -1)],
               f"{episode.id} has the actions {[step.action for step in episode.steps]}")  # fmt: skip


def harmed_collection(kills: int, stops: int, number: int, seed: int, folder: Path, all_of_them: bool = True) -> Tally:
    """Kill and stop workers in random order, in one collection of short episodes by six workers."""
    signals = [signal.SIGKILL] * kills + [signal.SIGSTOP] * stops
    random.Random(seed).shuffle(signals)
    settings = PoolSettings(call_timeout=3, reset_timeout=6, max_attempts=4)
    _, harm = collect_under(lambda pool: Harm(pool, signals, seed, 0.4), settings, make_suite(number),
                            folder / "episodes.jsonl", number, 6)  # fmt: skip
    check_countdowns(folder / "episodes.jsonl", number)
    sent = f"{harm.sent[signal.SIGKILL]} killed, {harm.sent[signal.SIGSTOP]} stopped, {number} episodes"
    total = sum(harm.sent.values())
    expect(total == kills + stops or not all_of_them, f"the collection ended before the last fault: {sent}")
    return Tally(total, total, sent)


def killed_collection(seed: int, folder: Path) -> Tally:
    """Kill the process that collects, and its workers with it, at random moments, and start it again."""
    rng, path, number = random.Random(seed), folder / "episodes.jsonl", 300

    def work() -> None:
        suite = make_suite(number)
        collect_expert_episodes(suite, suite.episodes("train"), path, num_workers=4, progress=False)

    kills = 0
    while kills < 5:
        child = Child(work, folder / f"collect{kills}.log")
        if child.wait(rng.uniform(1, 6)) is not None:
            break
        child.end()
        kills += 1
    child = Child(work, folder / "last.log")
    expect(child.wait(200) == 0, child.printed[-500:])
    check_countdowns(path, number)
    expect([each.name for each in folder.glob("*episodes*")] == ["episodes.jsonl"], "a partial file remains")
    return Tally(kills, kills, f"{number} episodes")


def java(seed: int, folder: Path) -> Tally:
    """Kill 6 and stop 2 of ScienceWorld's processes, with their Java."""
    from lit_rft.envs.scienceworld import short_tasks

    suite: Any = short_tasks()
    signals = [signal.SIGKILL] * 3 + [signal.SIGSTOP] + [signal.SIGKILL] * 3 + [signal.SIGSTOP]
    settings = PoolSettings(call_timeout=5, reset_timeout=40, max_attempts=4)
    number = len(suite.episodes("train", limit=4))
    episodes, harm = collect_under(lambda pool: Harm(pool, signals, seed, 6.0), settings, suite,
                                   folder / "episodes.jsonl", 4, 2)  # fmt: skip
    expect(len({episode.id for episode in episodes}) == number, f"{len(episodes)} of {number} episodes")
    expect(all(episode.outcome.success for episode in episodes), "an expert episode did not reach its goal")
    total = sum(harm.sent.values())
    return Tally(total, total, f"{dict(harm.sent)}, {number} episodes")
