"""Expressions by number of steps, in splits without a common problem."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym

from lit_rft.envs.base import (
    CHOOSES_EPISODES,
    EpisodeSpec,
    Expert,
    Half,
    PolicyExpert,
    check_split,
    choose,
    choose_tasks,
)
from lit_rft.envs.mathematics.env import Expressions, expert, goal_of
from lit_rft.envs.mathematics.problems import read_line
from lit_rft.envs.mathematics.rewards import ProcessReward
from lit_rft.episodes.record import Episode

_SEEDS_PER_SPLIT = 1_000_000
_SEEDS_PER_PROBLEM = 10  # tried for each problem of an evaluation
LONGER = "longer"  # split of problems with more steps


@dataclass(frozen=True)
class ExpressionSuite:
    """Problems with expressions (`Expressions`); a `TaskSuite`. Its tasks are numbers of steps, such as ``3 steps``.

    The splits ``train``, ``dev`` and ``test`` have no problem in common. A fourth, ``longer``, has longer solutions.

    Attributes:
        steps: numbers of steps of ``train``, ``dev`` and ``test``.
        longer_steps: those of ``longer``.
        problems: split -> number of problems of each task. They may repeat in ``train``, and differ in the other
            splits, which have fewer if there are too few expressions.
        step_limit: lines per episode, after which it is truncated.
        highest, process_reward, process_weight: see `Expressions`.

    Raises:
        ValueError: a number is out of range, or a split is unknown.
    """

    steps: Sequence[int] = field(default=(2, 3), metadata=CHOOSES_EPISODES)
    longer_steps: Sequence[int] = field(default=(4, 5), metadata=CHOOSES_EPISODES)
    problems: Mapping[str, int] = field(
        default_factory=lambda: {"train": 1000, "dev": 50, "test": 100, LONGER: 100}, metadata=CHOOSES_EPISODES
    )
    step_limit: int = 12
    highest: int = 9
    process_reward: ProcessReward | None = None
    process_weight: float = 0.5

    name: ClassVar[str] = "expressions"

    def __post_init__(self) -> None:
        self.make_env().reset(seed=0)  # checks the other numbers
        for split, number in self.problems.items():
            if split not in ("train", "dev", "test", LONGER) or not 0 < number <= _SEEDS_PER_SPLIT:
                raise ValueError(
                    f"problems takes train, dev, test and {LONGER} with numbers in 1..{_SEEDS_PER_SPLIT}, "
                    f"got {split}: {number}"
                )
        if self.step_limit < 1:
            raise ValueError(f"step_limit must be at least 1, got {self.step_limit}")

    @property
    def expert(self) -> Expert:
        """An expert that computes the first part that it may; after a wrong line, with the wrong result."""
        return PolicyExpert(expert, annotator=annotate_lines)

    def make_env(self) -> gym.Env[str, str]:
        """Make an environment."""
        return Expressions(self.steps, self.highest, self.process_reward, self.process_weight)

    def episodes(
        self,
        split: str,
        *,
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
        half: Half | None = None,
        seed: int = 0,
    ) -> list[EpisodeSpec]:
        """Return the episodes of a split, task by task; see `TaskSuite.episodes`.

        Raises:
            ValueError: unknown split or task, or a limit below 1.
        """
        check_split(split, self.problems, repr(self.name))
        numbers = {_task_of(steps): steps for steps in (self.longer_steps if split == LONGER else self.steps)}
        return [
            self._episode(task, numbers[task], split, number)
            for task in choose_tasks(numbers, tasks, f"the split {split!r} of {self.name!r}")
            for number in choose(self._numbers(split, numbers[task]), limit, half, f"{seed}/{task}/{split}")
        ]

    def _numbers(self, split: str, steps: int) -> Sequence[int]:
        number = self.problems[split]
        if split == "train":
            return range(number)
        return _different(tuple(self.steps), self.highest, steps, split, number)

    def _episode(self, task: str, steps: int, split: str, number: int) -> EpisodeSpec:
        seed = _first_seed(split) + number
        return EpisodeSpec(
            id=f"{self.name}/{split}/{steps}/{number}",
            task=task,
            split=split,
            seed=seed,
            options=_options(split, steps),
            step_limit=self.step_limit,
            meta={"seed": seed, "steps": steps, "highest": self.highest},
        )


def _first_seed(split: str) -> int:
    return ("train", "dev", "test", LONGER).index(split) * _SEEDS_PER_SPLIT


def _options(split: str, steps: int) -> dict[str, Any]:
    return {"steps": steps, "split": "test" if split == LONGER else split}


@functools.cache
def _different(env_steps: tuple[int, ...], highest: int, steps: int, split: str, number: int) -> list[int]:
    """Return numbers of different problems of a split, at most `number`."""
    env = Expressions(env_steps, highest)
    numbers: dict[str, int] = {}
    for candidate in range(min(_SEEDS_PER_PROBLEM * number, _SEEDS_PER_SPLIT)):
        text, _ = env.reset(seed=_first_seed(split) + candidate, options=_options(split, steps))
        numbers.setdefault(text, candidate)
        if len(numbers) == number:
            break
    return list(numbers.values())


def annotate_lines(episode: Episode) -> list[tuple[int, int, str, bool]]:
    """Return a subgoal for each line: the part that it computes, completed if its result is right (an annotator)."""
    segments = []
    for index, step in enumerate(episode.steps):
        line = read_line(step.action)
        goal = "write a line" if line is None else goal_of(line)
        segments.append((index, index + 1, goal, bool(step.achieved)))
    return segments


def _task_of(steps: int) -> str:
    return f"{steps} step{'s' * (steps > 1)}"
