"""The contract of environments: suites of tasks, specifications of episodes, and the keys of an environment's info.

An environment is any `gymnasium.Env` with text observations and text actions. `docs/environments.md` has an example.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict, TypeVar, runtime_checkable

import gymnasium as gym

from lit_rft._plain import with_class
from lit_rft.episodes.record import Achieved, Episode
from lit_rft.episodes.subgoals import Annotator, annotate_events

Item = TypeVar("Item")
Half = Literal["first", "second"]
CHOOSES_EPISODES: Mapping[str, bool] = {"chooses_episodes": True}  # metadata of fields of a suite's dataclass
ExpertPolicy = Callable[[str, Mapping[str, Any]], str | None]  # observation and info -> action; None: at its end


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """The specification of an episode.

    Attributes:
        id: unique among concurrent episodes; the id of the episode's record.
        task: name of the task, for scores by task.
        split: split of the data.
        seed: for the environment's `reset`.
        options: for the environment's `reset`; any JSON values.
        step_limit: maximum number of actions, after which the episode is truncated; 0 for the environment's own limit.
        meta: identifies the problem within its task (variation, simplification, game file, ...); JSON values, stored in
            the episode's record.
        notes: texts for the agent's session, such as reflections on earlier trials; stored in the episode's record.
    """

    id: str
    task: str = ""
    split: str = ""
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    step_limit: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class StepInfo(TypedDict, total=False):
    """Keys of an environment's info, all optional. `EpisodeEnv` fills in the defaults.

    From `reset` and `step`:
        score: score so far, any finite number. Default: the sum of the rewards so far.
        achieved: conditions newly met, as `Achieved`, as ``{"key": ..., "text": ...}`` or as text. Default: none.
        admissible: actions that the environment would accept now. Absent by default.
        metrics: further finite numbers by name. The last value of each is stored in the episode's record, and averaged
            over episodes in reports. Default: none.

    From `reset` only:
        env, env_version: name and version for the records. Default: the name of the class, and no version.
        task_description: the task in words. Default: the first observation, which agents then show once.

    From `step` only:
        valid: whether the environment understood the action. Default: True.
        success: whether the task is solved. Default: the environment has terminated the episode with a reward above 0.
        reason: reason of the episode's end, None before it. Default: ``goal`` or ``failed`` if the environment
            terminated it, ``step_limit`` at the limit of its `EpisodeSpec`, ``truncated`` otherwise.
    """

    env: str
    env_version: str
    task_description: str
    score: float
    success: bool
    valid: bool
    achieved: list[Achieved]
    admissible: list[str]
    reason: str | None
    metrics: dict[str, float]


class Expert(Protocol):
    """An expert for a suite's tasks, used by `collect_expert_episodes`.

    An expert that chooses its actions step by step has a method ``act`` (`ExpertPolicy`), used instead of `actions`.
    """

    @property
    def kind(self) -> str:
        """Value of ``source["kind"]`` in its episodes, such as ``gold``."""

    @property
    def irreversible(self) -> tuple[str, ...]:
        """Prefixes of actions that could end an episode at once: a perturbation never inserts them."""

    def prepare(self, spec: EpisodeSpec, admissible_at: Sequence[int]) -> EpisodeSpec:
        """Adapt the specification of an episode for this expert.

        Args:
            spec: the episode.
            admissible_at: steps before which the info must have `StepInfo.admissible`.
        """

    def actions(self, spec: EpisodeSpec, info: Mapping[str, Any]) -> Sequence[str]:
        """Return the actions that solve the task, given the info from `reset`."""

    def annotate(self, episode: Episode) -> Any:
        """Apply the default annotator of the suite's episodes, see `lit_rft.episodes.subgoals`."""


class TaskSuite(Protocol):
    """Tasks of an environment. Suites may also have an expert that solves them (`HasExpert`).

    If `make_env` is a method of the suite, the suite must be picklable: it is called in worker processes.
    """

    @property
    def name(self) -> str:
        """Name for reports and files."""

    def make_env(self) -> gym.Env[str, str]:
        """Make an environment."""

    def episodes(
        self,
        split: str,
        *,
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
        half: Half | None = None,
        seed: int = 0,
    ) -> list[EpisodeSpec]:
        """Return the episodes of a split, task by task.

        Args:
            split: name of the split.
            tasks: names of tasks; None for all of them.
            limit: maximum number of episodes per task; None for the suite's default.
            half: one of two disjoint halves of each task's episodes; None for both.
            seed: of the choice among more than `limit` episodes.

        Raises:
            ValueError: unknown split or task, or a limit below 1.
        """


@runtime_checkable
class HasExpert(Protocol):
    """A suite that may have an expert."""

    @property
    def expert(self) -> Expert | None:
        """It solves the suite's tasks; None for none."""


def expert_of(suite: TaskSuite) -> Expert:
    """Return a suite's expert.

    Raises:
        ValueError: the suite has none.
    """
    expert = suite.expert if isinstance(suite, HasExpert) else None
    if expert is None:
        raise ValueError(
            f"the suite {suite.name!r} has no expert to collect episodes: set files of stored episodes "
            "(data.init_args.train_files), or train without demonstrations"
        )
    return expert


@dataclass(frozen=True)
class ScriptedExpert:
    """An expert with scripted actions.

    Attributes:
        script: returns the actions of an episode.
        kind, irreversible: see `Expert`.
        annotator: see `Expert.annotate`; by default subgoals end at achieved conditions.
    """

    script: Callable[[EpisodeSpec], Sequence[str]]
    kind: str = "scripted"
    irreversible: tuple[str, ...] = ()
    annotator: Annotator | None = None

    def prepare(self, spec: EpisodeSpec, admissible_at: Sequence[int]) -> EpisodeSpec:
        return spec

    def actions(self, spec: EpisodeSpec, info: Mapping[str, Any]) -> Sequence[str]:
        return self.script(spec)

    def annotate(self, episode: Episode) -> Any:
        return (self.annotator or annotate_events)(episode)


@dataclass(frozen=True)
class PolicyExpert:
    """An expert that chooses each action from the observation and the info before it.

    Attributes:
        policy: chooses the action.
        kind, irreversible: see `Expert`.
        annotator: see `Expert.annotate`; by default subgoals are cut at the conditions that were achieved.
    """

    policy: ExpertPolicy
    kind: str = "expert"
    irreversible: tuple[str, ...] = ()
    annotator: Annotator | None = None

    def prepare(self, spec: EpisodeSpec, admissible_at: Sequence[int]) -> EpisodeSpec:
        return spec

    def actions(self, spec: EpisodeSpec, info: Mapping[str, Any]) -> Sequence[str]:
        return ()  # nothing is known beforehand

    def act(self, observation: str, info: Mapping[str, Any]) -> str | None:
        return self.policy(observation, info)

    def annotate(self, episode: Episode) -> Any:
        return (self.annotator or annotate_events)(episode)


def describe(suite: TaskSuite) -> str:
    """Return a suite's class and arguments as JSON: equal for suites with the same episodes."""
    return json.dumps(with_class(suite, deep=True), sort_keys=True)


def describe_settings(suite: TaskSuite) -> dict[str, Any]:
    """Return a suite's class and arguments, as plain data, without those that only choose among its episodes.

    Episodes of the same specification are comparable if their suites have the same settings. Fields of a dataclass with
    the metadata `CHOOSES_EPISODES` are left out.
    """
    settings = with_class(suite, deep=True)
    fields: Sequence[dataclasses.Field[Any]] = dataclasses.fields(suite) if dataclasses.is_dataclass(suite) else ()
    for item in fields:
        value = getattr(suite, item.name)
        if CHOOSES_EPISODES.items() <= item.metadata.items():
            settings["init_args"].pop(item.name, None)
        elif hasattr(value, "make_env"):  # a suite around another one
            settings["init_args"][item.name] = describe_settings(value)
    return settings


def problem_key(item: EpisodeSpec | Episode) -> tuple[str, str]:
    """Return the key of an episode's problem: task and `meta`."""
    return item.task, json.dumps(item.meta, sort_keys=True)


def check_split(split: str, splits: Iterable[str], owner: str) -> None:
    """Check that a split is one of an owner's.

    Raises:
        ValueError: unknown split.
    """
    names = list(splits)
    if split not in names:
        raise ValueError(f"{owner} has the splits {', '.join(names) or '(none)'}, got {split!r}")


def choose_tasks(available: Iterable[str], tasks: Sequence[str] | None, owner: str) -> list[str]:
    """Choose some tasks by their names, each once.

    Args:
        available: names of all tasks, in order.
        tasks: the chosen ones, in order; None for all.
        owner: of the tasks, for the error.

    Raises:
        ValueError: unknown task.
    """
    names = list(available)
    for task in tasks or ():
        if task not in names:
            raise ValueError(f"unknown task {task!r}; {owner} has {', '.join(names)}")
    return list(dict.fromkeys(names if tasks is None else tasks))


def choose(items: Sequence[Item], limit: int | None, half: Half | None, seed: str) -> list[Item]:
    """Choose items, evenly spread: one at random from each of `limit` equal parts.

    Args:
        items: to choose from, in order.
        limit: maximum number; None for all.
        half: choose from every second item, beginning with the ``first`` or ``second``; None for all items.
        seed: of the choice, which depends only on it and the number of items.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    items = items[{None: slice(None), "first": slice(0, None, 2), "second": slice(1, None, 2)}[half]]
    if limit is None or limit >= len(items):
        return list(items)
    rng = random.Random(seed)
    bounds = [i * len(items) // limit for i in range(limit + 1)]
    return [items[rng.randrange(start, end)] for start, end in itertools.pairwise(bounds)]
