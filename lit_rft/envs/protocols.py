"""Named evaluation settings for ScienceWorld: which tasks, which variations, under which limits.

A score means something only together with these, so they have a name and a place. A setting of one's own is a
`Protocol`, or a changed copy of one: ``dataclasses.replace(PROTOCOLS["glider"], step_limit=100)``.
"""

from __future__ import annotations

import itertools
import random
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym

from lit_rft.envs.pool import Job

OFFICIAL_SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Protocol:
    """An evaluation setting.

    Attributes:
        name: as reports call it.
        step_limit: actions per episode.
        simplification: the simulator's: ``""`` (none), ``"easy"``, or some of its own names, joined by commas.
        splits: this setting's names for splits -> official ones (train, dev, test).
        max_variations_per_task: official split -> at most so many variations of each task; all where it is absent.
        tasks: the tasks in use; empty for all.
        excluded: tasks that are left out.
        task_step_limits: tasks with a limit of their own.
    """

    name: str
    step_limit: int
    simplification: str = ""
    splits: Mapping[str, str] = field(default_factory=lambda: {name: name for name in OFFICIAL_SPLITS})
    max_variations_per_task: Mapping[str, int] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    task_step_limits: Mapping[str, int] = field(default_factory=dict)

    def make_env(self) -> gym.Env[str, str]:
        """A ScienceWorld environment under these limits. The bound method is what an `EnvPool` wants."""
        from lit_rft.envs.scienceworld import ScienceWorldEnv

        env: gym.Env[str, str] = ScienceWorldEnv(self.step_limit, self.simplification)
        return _TaskStepLimits(env, self) if self.task_step_limits else env

    def official_split(self, split: str) -> str:
        """The official split that this setting uses under a name; official names stand for themselves.

        Raises:
            ValueError: this setting has no such split.
        """
        official = self.splits.get(split, split)
        if official not in self.splits.values():
            raise ValueError(f"{self.name!r} has the splits {_listed(self.splits)}, got {split!r}")
        return official

    def step_limit_of(self, task: str) -> int:
        return self.task_step_limits.get(task, self.step_limit)


@dataclass(frozen=True, slots=True)
class EpisodeJob(Job):
    """A job for the worker pool that knows what an episode's record has to say about it.

    Attributes:
        split: official split of the variation.
        simplification, step_limit: what the environment was made with.
    """

    split: str = ""
    simplification: str = ""
    step_limit: int = 0


class TaskSource(typing.Protocol):
    """The part of an environment that knows the tasks and the official splits; `ScienceWorldEnv` has it."""

    def tasks(self) -> list[str]: ...

    def variations(self, task: str, split: Any, /) -> list[int]: ...


def episode_jobs(
    protocol: Protocol,
    env: TaskSource,
    split: str,
    tasks: Sequence[str] | None = None,
    *,
    max_variations: int | None = None,
    half: Literal["first", "second"] | None = None,
    seed: int = 0,
) -> list[EpisodeJob]:
    """The episodes of a split, task by task.

    Where a task has more variations than are wanted, they are chosen evenly spread over the split: it is cut into as
    many equal parts as are wanted, and each gives one at random. The choice depends on nothing but seed, task, split
    and their number.

    Args:
        split: official, or one of the protocol's own names for it.
        tasks: some of the protocol's tasks; default all of them.
        max_variations: of each task, in place of the protocol's own number.
        half: take one of two halves of each task's variations only, which share none: every second one.
        seed: of the choice of variations.
    Raises:
        ValueError: a task or split is unknown or left out by the protocol, or `max_variations` is below 1.
    """
    official = protocol.official_split(split)
    limit = protocol.max_variations_per_task.get(official) if max_variations is None else max_variations
    if limit is not None and limit < 1:
        raise ValueError(f"max_variations must be at least 1, got {limit}")
    jobs = []
    for task in _chosen_tasks(protocol, env.tasks(), tasks):
        available = env.variations(task, official)[_HALVES[half]]
        for variation in _spread(available, limit, f"{seed}/{task}/{official}"):
            jobs.append(_job(protocol, task, variation, official))
    return jobs


_HALVES = {None: slice(None), "first": slice(0, None, 2), "second": slice(1, None, 2)}


def _job(protocol: Protocol, task: str, variation: int, split: str) -> EpisodeJob:
    env = f"scienceworld-{protocol.simplification}" if protocol.simplification else "scienceworld"
    return EpisodeJob(
        id=f"{env}/{split}/{task}/{variation}",
        options={"task": task, "variation": variation},
        split=split,
        simplification=protocol.simplification,
        step_limit=protocol.step_limit_of(task),
    )


def _chosen_tasks(protocol: Protocol, available: list[str], wanted: Sequence[str] | None) -> list[str]:
    own = [task for task in protocol.tasks or available if task not in protocol.excluded]
    chosen = list(dict.fromkeys(own if wanted is None else wanted))
    for task in chosen:
        if task not in available:
            raise ValueError(f"unknown task {task!r}; the environment has {_listed(available)}")
        if task not in own:
            raise ValueError(f"{protocol.name!r} leaves out the task {task!r}; it has {_listed(own)}")
    return chosen


def _spread(variations: list[int], limit: int | None, seed: str) -> list[int]:
    if limit is None or limit >= len(variations):
        return list(variations)
    rng = random.Random(seed)
    bounds = [i * len(variations) // limit for i in range(limit + 1)]
    return [variations[rng.randrange(start, end)] for start, end in itertools.pairwise(bounds)]


def _listed(names: typing.Iterable[str]) -> str:
    return ", ".join(names)


class _TaskStepLimits(gym.Wrapper[str, str, str, str]):
    """Gives each task its own step limit."""

    def __init__(self, env: gym.Env[str, str], protocol: Protocol) -> None:
        super().__init__(env)
        self._protocol = protocol

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        simulator: Any = self.unwrapped
        simulator.step_limit = self._protocol.step_limit_of((options or {}).get("task", ""))
        return super().reset(seed=seed, options=options)


# GLIDER leaves out the tasks 14-16, 21, 23 and 24. Its release counts them, from 0, in the order in which the simulator
# itself lists them (getTaskNames: alphabetical), not in that of the simulator's documentation (1-1, 1-2, ...), where 14
# would be find-animal. They are also the six tasks that ETO's table of step limits, below, does not have.
_GLIDER_EXCLUDED = (
    "inclined-plane-determine-angle",  # 14
    "inclined-plane-friction-named-surfaces",  # 15
    "inclined-plane-friction-unnamed-surfaces",  # 16
    "measure-melting-point-unknown-substance",  # 21
    "mendelian-genetics-known-plant",  # 23
    "mendelian-genetics-unknown-plant",  # 24
)

# ETO (Song et al., ACL 2024), table of the public release, by the simulator's present names.
_ETO_STEP_LIMITS = {
    "boil": 100,
    "change-the-state-of-matter-of": 80,
    "chemistry-mix": 60,
    "chemistry-mix-paint-secondary-color": 15,
    "chemistry-mix-paint-tertiary-color": 30,
    "find-animal": 15,
    "find-living-thing": 15,
    "find-non-living-thing": 15,
    "find-plant": 15,
    "freeze": 80,
    "grow-fruit": 60,
    "grow-plant": 30,
    "identify-life-stages-1": 30,
    "identify-life-stages-2": 30,
    "lifespan-longest-lived": 10,
    "lifespan-longest-lived-then-shortest-lived": 12,
    "lifespan-shortest-lived": 10,
    "measure-melting-point-known-substance": 120,
    "melt": 80,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 30,
    "test-conductivity": 30,
    "test-conductivity-of-unknown-substances": 30,
    "use-thermometer": 30,
}

_SEEN_UNSEEN = {"train": "train", "seen": "dev", "unseen": "test"}
_TEN_EACH = {"dev": 10, "test": 10}

PROTOCOLS: dict[str, Protocol] = {
    # The papers draw their (at most ten) variations at random; here they are spread evenly, by seed.
    "glider": Protocol("glider", 50, splits=_SEEN_UNSEEN, max_variations_per_task=_TEN_EACH, excluded=_GLIDER_EXCLUDED),
    "eto": Protocol(
        "eto",
        120,
        "easy",
        splits=_SEEN_UNSEEN,
        max_variations_per_task=_TEN_EACH,
        tasks=tuple(_ETO_STEP_LIMITS),
        task_step_limits=_ETO_STEP_LIMITS,
    ),
    # Four tasks that the simulator solves in a handful of steps, for demonstrations on small machines.
    "short-tasks": Protocol(
        "short-tasks",
        20,
        "easy",
        splits={"train": "train", "held_out": "dev"},
        tasks=("find-animal", "find-living-thing", "find-non-living-thing", "find-plant"),
    ),
}
