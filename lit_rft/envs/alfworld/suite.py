"""Suites of household games: ALFWorld's own under the settings of papers, and generated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym

from lit_rft.envs.alfworld.env import AlfworldEnv
from lit_rft.envs.alfworld.experts import ExplorerExpert
from lit_rft.envs.alfworld.games import TASKS
from lit_rft.envs.alfworld.generator import SPLITS, Layout
from lit_rft.envs.alfworld.official import OFFICIAL_GAMES, OfficialGames, data_folder, official_games
from lit_rft.envs.alfworld.sources import SYNTHETIC, SyntheticGames
from lit_rft.envs.base import CHOOSES_EPISODES, EpisodeSpec, Expert, Half, check_split, choose, choose_tasks

_PREFIX = "synthetic-"


@dataclass(frozen=True)
class AlfworldSuite:
    """ALFWorld's games under one evaluation setting; a `TaskSuite`.

    Attributes:
        name: for reports.
        step_limit: actions per episode.
        splits: names of splits -> ALFWorld's (train, valid_seen, valid_unseen).
        data: folder of ALFWorld's data; empty for ``$ALFWORLD_DATA``.
        check_counts: refuse a split that has another number of games than ALFWorld's.
        mistakes, omniscient, expert_seed: see `SyntheticSuite`.

    Raises:
        ValueError: a number is out of range.
    """

    name: str = "alfworld"
    step_limit: int = 50
    splits: Mapping[str, str] = field(
        default_factory=lambda: {name: name for name in OFFICIAL_GAMES}, metadata=CHOOSES_EPISODES
    )
    data: str = ""
    check_counts: bool = field(default=True, metadata=CHOOSES_EPISODES)
    mistakes: float = 0.0
    omniscient: bool = False
    expert_seed: int = 0

    def __post_init__(self) -> None:
        _check(self.step_limit, self.mistakes)

    @property
    def expert(self) -> Expert:
        """An expert that searches objects in likely places."""
        return ExplorerExpert(OfficialGames(self.data), self.mistakes, self.omniscient, self.expert_seed)

    def make_env(self) -> gym.Env[str, str]:
        """Make an environment for game files on TextWorld."""
        return AlfworldEnv(OfficialGames(self.data))

    def episodes(
        self,
        split: str,
        *,
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
        half: Half | None = None,
        seed: int = 0,
    ) -> list[EpisodeSpec]:
        """Return the games of a split, task by task, sorted by path; see `TaskSuite.episodes`.

        Args:
            split: the suite's name for it, or ALFWorld's.
            tasks, limit, half, seed: see `TaskSuite.episodes`.

        Raises:
            ValueError: there are no games, or another number than ALFWorld's; unknown split or task, or a limit below
                1.
        """
        official = self.splits.get(split, split)
        if official not in self.splits.values():
            raise ValueError(f"{self.name!r} has the splits {', '.join(self.splits)}, got {split!r}")
        games = official_games(data_folder(self.data), official)
        number = sum(map(len, games.values()))
        if self.check_counts and number != OFFICIAL_GAMES[official]:
            raise ValueError(
                f"expected {OFFICIAL_GAMES[official]} games in the split {official} of {data_folder(self.data)}, got "
                f"{number}: download them again, or set check_counts to false and report the number with every result"
            )
        return [
            self._episode(task, path, official)
            for task in choose_tasks(TASKS, tasks, repr(self.name))
            for path in choose(games[task], limit, half, f"{seed}/{task}/{official}")
        ]

    def _episode(self, task: str, path: str, split: str) -> EpisodeSpec:
        trial = path.split("/", 2)[-1].removesuffix("/game.tw-pddl")
        return EpisodeSpec(
            id=f"alfworld/{split}/{trial}",
            task=task,
            split=split,
            options={"game": path},
            step_limit=self.step_limit,
            meta={"game": path},
        )


@dataclass(frozen=True)
class SyntheticSuite:
    """Generated households; a `TaskSuite`. Results on them are not results on ALFWorld.

    No download is needed. The floor plans of the splits differ: ``train`` has those of ALFWorld's training games,
    ``dev`` and ``test`` one half each of those that ALFWorld holds out. Tasks are ALFWorld's, by names that begin with
    ``synthetic-``.

    Attributes:
        step_limit: actions per episode.
        games: split -> number of games of each task.
        max_receptacles: maximum number of receptacles of one type; 20 cabinets make a long game.
        max_objects: maximum number of objects of one type.
        closed: share of the objects that lie in closed receptacles where they can, in [0, 1]; null leaves it to chance.
        textworld: play on TextWorld's engine, and not on the equivalent in plain Python, which is much faster.
        mistakes: probability of a wrong action at each step of the expert, from which it recovers: medium-quality data.
        omniscient: an expert that knows where everything is: shorter episodes that a policy can hardly learn from.
        expert_seed: of the expert's wrong actions.

    Raises:
        ValueError: a number is out of range.
    """

    step_limit: int = 30
    games: Mapping[str, int] = field(
        default_factory=lambda: {"train": 1000, "dev": 50, "test": 50}, metadata=CHOOSES_EPISODES
    )
    max_receptacles: int = 4
    max_objects: int = 3
    closed: float | None = None
    textworld: bool = False
    mistakes: float = 0.0
    omniscient: bool = False
    expert_seed: int = 0

    name: ClassVar[str] = SYNTHETIC

    def __post_init__(self) -> None:
        _check(self.step_limit, self.mistakes)
        for split, number in self.games.items():
            if split not in SPLITS or number < 1:
                raise ValueError(f"games takes {', '.join(SPLITS)} with a number of at least 1, got {split}: {number}")
        self._source()

    @property
    def expert(self) -> Expert:
        """An expert that searches objects in likely places."""
        return ExplorerExpert(self._source(), self.mistakes, self.omniscient, self.expert_seed)

    def make_env(self) -> gym.Env[str, str]:
        """Make an environment that generates its games."""
        return AlfworldEnv(self._source())

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
        check_split(split, self.games, repr(self.name))
        names = {_PREFIX + task: task for task in TASKS}
        return [
            self._episode(task, names[task], split, number)
            for task in choose_tasks(names, tasks, repr(self.name))
            for number in choose(range(self.games[split]), limit, half, f"{seed}/{task}/{split}")
        ]

    def _episode(self, task: str, kind: str, split: str, seed: int) -> EpisodeSpec:
        layout: dict[str, Any] = {"max_receptacles": self.max_receptacles, "max_objects": self.max_objects}
        tag = f"r{self.max_receptacles}o{self.max_objects}"
        if self.closed is not None:
            layout["closed"] = self.closed
            tag += f"c{self.closed:g}"
        return EpisodeSpec(
            id=f"{SYNTHETIC}/{tag}/{split}/{kind}/{seed}",
            task=task,
            split=split,
            options={"task": kind, "split": split, "seed": seed},
            step_limit=self.step_limit,
            meta={"synthetic": True, "seed": seed, **layout},
        )

    def _source(self) -> SyntheticGames:
        return SyntheticGames(Layout(self.max_receptacles, self.max_objects, self.closed), self.textworld)


def small_households(step_limit: int = 30, mistakes: float = 0.0) -> SyntheticSuite:
    """Make a suite of households with at most two receptacles per type, for demonstrations on small machines."""
    return SyntheticSuite(step_limit=step_limit, max_receptacles=2, mistakes=mistakes)


def glider(data: str = "") -> AlfworldSuite:
    """Make GLIDER's setting by its paper (the release has none): 140 seen and 134 unseen games, at most 50 actions."""
    return AlfworldSuite("alfworld-glider", 50, _SEEN_UNSEEN, data)


def eto(data: str = "") -> AlfworldSuite:
    """Make ETO's setting: the same games, at most 40 actions."""
    return AlfworldSuite("alfworld-eto", 40, _SEEN_UNSEEN, data)


_SEEN_UNSEEN = {"train": "train", "seen": "valid_seen", "unseen": "valid_unseen"}


def _check(step_limit: int, mistakes: float) -> None:
    if step_limit < 1:
        raise ValueError(f"step_limit must be at least 1, got {step_limit}")
    if not 0.0 <= mistakes < 1.0:
        raise ValueError(f"mistakes must be in [0, 1), got {mistakes}")
