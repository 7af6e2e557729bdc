"""ScienceWorld's tasks as suites: tasks and variations with their limits.

Scores are comparable only with equal settings, so the settings of papers have names. For others make a
`ScienceWorldSuite`, or change one: ``dataclasses.replace(glider(), step_limit=100)``.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym

from lit_rft.envs.base import CHOOSES_EPISODES, EpisodeSpec, Expert, Half, choose, choose_tasks
from lit_rft.envs.scienceworld.expert import GoldPaths

OFFICIAL_SPLITS = ("train", "dev", "test")


class TaskSource(typing.Protocol):
    """The part of a simulator with the tasks and the official splits; `ScienceWorldEnv` implements it."""

    def tasks(self) -> list[str]: ...

    def variations(self, task: str, split: Any, /) -> list[int]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ScienceWorldSuite:
    """Tasks of ScienceWorld under one evaluation setting; a `TaskSuite`.

    Attributes:
        name: for reports.
        step_limit: maximum actions per episode.
        simplification: ``""`` (none), ``"easy"``, or names of the simulator's simplifications, joined by commas.
        splits: names of splits -> official ones (train, dev, test).
        max_variations_per_task: official split -> maximum number of variations per task; all if absent.
        tasks: the tasks in use; empty for all.
        excluded: excluded tasks.
        task_step_limits: tasks with their own limit.
    """

    name: str = "scienceworld"
    step_limit: int = 50
    simplification: str = ""
    splits: Mapping[str, str] = field(
        default_factory=lambda: {name: name for name in OFFICIAL_SPLITS}, metadata=CHOOSES_EPISODES
    )
    max_variations_per_task: Mapping[str, int] = field(default_factory=dict, metadata=CHOOSES_EPISODES)
    tasks: tuple[str, ...] = field(default=(), metadata=CHOOSES_EPISODES)
    excluded: tuple[str, ...] = field(default=(), metadata=CHOOSES_EPISODES)
    task_step_limits: Mapping[str, int] = field(default_factory=dict)

    expert: ClassVar[Expert] = GoldPaths()

    def make_env(self) -> gym.Env[str, str]:
        """Make a simulator; the limits of single tasks come with the episodes' specifications."""
        from lit_rft.envs.scienceworld.env import ScienceWorldEnv

        return ScienceWorldEnv(max(self.step_limit, *self.task_step_limits.values(), 1), self.simplification)

    def episodes(
        self,
        split: str,
        *,
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
        half: Half | None = None,
        seed: int = 0,
    ) -> list[EpisodeSpec]:
        """Return the episodes of a split; see `TaskSuite.episodes`. Starts a simulator for the query.

        If a task has more variations than requested, the choice is evenly spread over the split, and depends only on
        seed, task, split and their number.

        Args:
            split: an official split, or the suite's own name of one.
            tasks, limit, half, seed: see `TaskSuite.episodes`.

        Raises:
            ValueError: unknown split, unknown or excluded task, or a limit below 1.
        """
        official = self.official_split(split)
        limit = self.max_variations_per_task.get(official) if limit is None else limit
        simulator: TaskSource = self.make_env()  # type: ignore[assignment]
        try:
            specs = []
            for task in self._chosen_tasks(simulator.tasks(), tasks):
                available = simulator.variations(task, official)
                for variation in choose(available, limit, half, f"{seed}/{task}/{official}"):
                    specs.append(self.episode(task, variation, official))
            return specs
        finally:
            simulator.close()

    def episode(self, task: str, variation: int, split: str) -> EpisodeSpec:
        """Make the specification of one episode."""
        env = f"scienceworld-{self.simplification}" if self.simplification else "scienceworld"
        return EpisodeSpec(
            id=f"{env}/{split}/{task}/{variation}",
            task=task,
            split=split,
            options={"task": task, "variation": variation},
            step_limit=self.task_step_limits.get(task, self.step_limit),
            meta={"variation": variation, "simplification": self.simplification},
        )

    def official_split(self, split: str) -> str:
        """Return the official split of a name; official names are unchanged.

        Raises:
            ValueError: this suite has no such split.
        """
        official = self.splits.get(split, split)
        if official not in self.splits.values():
            raise ValueError(f"{self.name!r} has the splits {_listed(self.splits)}, got {split!r}")
        return official

    def _chosen_tasks(self, available: list[str], wanted: Sequence[str] | None) -> list[str]:
        names = [task for task in self.tasks or available if task not in self.excluded]
        for task in wanted or ():
            if task in available and task not in names:
                raise ValueError(f"{self.name!r} leaves out the task {task!r}; it has {_listed(names)}")
        return choose_tasks(names, wanted, f"{self.name!r}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


# GLIDER excludes the tasks 14-16, 21, 23 and 24. Its release counts them from 0 in the order of the simulator
# (getTaskNames: alphabetical), not of the simulator's documentation (1-1, 1-2, ...), where 14 would be find-animal.
# The same six tasks are missing in ETO's table of step limits, below.
_GLIDER_EXCLUDED = (
    "inclined-plane-determine-angle",  # 14
    "inclined-plane-friction-named-surfaces",  # 15
    "inclined-plane-friction-unnamed-surfaces",  # 16
    "measure-melting-point-unknown-substance",  # 21
    "mendelian-genetics-known-plant",  # 23
    "mendelian-genetics-unknown-plant",  # 24
)

# ETO (Song et al., ACL 2024), table of the public release, with the simulator's current names.
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
SHORT_TASKS = ("find-animal", "find-living-thing", "find-non-living-thing", "find-plant")


def glider(step_limit: int = 50, simplification: str = "") -> ScienceWorldSuite:
    """Make GLIDER's evaluation.

    The paper draws its (at most ten) variations at random; here they are spread evenly, by seed.
    """
    return ScienceWorldSuite(
        "glider", step_limit, simplification, _SEEN_UNSEEN, max_variations_per_task=_TEN_EACH, excluded=_GLIDER_EXCLUDED
    )


def eto(simplification: str = "easy") -> ScienceWorldSuite:
    """Make ETO's evaluation: each task has its own step limit."""
    return ScienceWorldSuite(
        "eto",
        120,
        simplification,
        _SEEN_UNSEEN,
        max_variations_per_task=_TEN_EACH,
        tasks=tuple(_ETO_STEP_LIMITS),
        task_step_limits=_ETO_STEP_LIMITS,
    )


def short_tasks(step_limit: int = 20, simplification: str = "easy") -> ScienceWorldSuite:
    """Make a suite of four tasks that the simulator solves in a few steps, for demonstrations on small machines.

    Its evaluation split `held_out` is the official `dev`; `test` is for experiments whose settings were chosen there.
    """
    splits = {"train": "train", "held_out": "dev", "test": "test"}
    return ScienceWorldSuite("short-tasks", step_limit, simplification, splits, tasks=SHORT_TASKS)
