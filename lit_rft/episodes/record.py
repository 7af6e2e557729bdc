"""The record of an episode, from which all training data is derived.

Plain dataclasses without torch or numpy, exactly representable as JSON. Rewards and scores are the environment's: any
finite numbers. If a solved task has score 1.0, reports, which multiply by 100, are in percent.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from lit_rft._records import (
    RecordError,
    check_fields,
    encoding_error,
    field_types,
    is_finite,
    join_fields,
    show_value,
)

SCHEMA = 2
ADMISSIBLE = "admissible"  # key of `Episode.extra`
_TOLERANCE = 1e-6  # of differences between scores


class EpisodeError(RecordError):
    """An invalid record of an episode."""


@dataclass(slots=True)
class Achieved:
    """A condition that the environment reported as met by a step.

    Attributes:
        key: the environment's name for it; the same key is the same condition.
        text: the condition in words, used in goals.
    """

    key: str
    text: str


@dataclass(slots=True)
class Step:
    """One action and its result.

    Attributes:
        action: text given to the environment.
        observation: the observation after the action.
        reward: the environment's reward.
        score: score after this step; the sum of rewards if the environment has no other.
        valid: whether the environment understood the action.
        achieved: conditions newly met by this step.
    """

    action: str
    observation: str
    reward: float
    score: float
    valid: bool
    achieved: list[Achieved] = field(default_factory=list)


@dataclass(slots=True)
class Subgoal:
    """A range of steps with one goal.

    Attributes:
        start: index of its first step.
        end: index after its last step.
        goal: the goal in words.
        completed: whether its last step reached the goal.
        annotator: source of the subgoal: ``events``, ``policy``, or the name of a user's annotator.
    """

    start: int
    end: int
    goal: str
    completed: bool
    annotator: str


@dataclass(slots=True)
class Outcome:
    """The end of an episode.

    Attributes:
        score: final score.
        success: whether the task was solved.
        terminated: ended by the environment (a value function must not bootstrap).
        truncated: ended from outside, for example by a step limit (a value function bootstraps).
        reason: ``goal``, ``failed``, ``step_limit``, ``env_error``, or another short word.
    """

    score: float
    success: bool
    terminated: bool
    truncated: bool
    reason: str


@dataclass(slots=True)
class Episode:
    """One complete episode.

    Attributes:
        id: unique in its data set.
        env, env_version: environment and its version, for example ``scienceworld`` and the simulator's version.
        task, split: name of the task, and split of the data.
        source: the acting policy; ``source["kind"]`` is ``gold``, ``planner``, ``perturbed`` or ``policy``.
        task_description: the task in words.
        initial_observation: observation before the first step.
        steps: actions and their results; empty if the environment failed before the first step.
        subgoals: contiguous and covering all steps, or empty for an episode without annotation.
        outcome: the end of the episode.
        schema: version of this record.
        step_limit: maximum number of steps; 0 for no limit.
        meta: identifies the problem within its task (`EpisodeSpec.meta`); JSON values only.
        extra: further JSON values. ``utterances`` has the texts that each level of a policy wrote; ``thoughts`` of an
            annotated episode, a thought before each step; ``admissible`` the admissible actions at each observation.
    """

    id: str
    env: str
    env_version: str
    task: str
    split: str
    source: dict[str, Any]
    task_description: str
    initial_observation: str
    steps: list[Step]
    subgoals: list[Subgoal]
    outcome: Outcome
    schema: int = SCHEMA
    step_limit: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def total_reward(self) -> float:
        """The undiscounted return, which may differ from the score."""
        return sum(step.reward for step in self.steps)

    @property
    def num_utterances(self) -> int:
        """Number of utterances of the acting policy, as in `extra`; 0 for other episodes."""
        return sum(len(texts) for texts in self.extra.get("utterances", {}).values())

    def to_dict(self) -> dict[str, Any]:
        """Convert the record to plain JSON values, ``schema`` first."""
        return {"schema": self.schema} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Episode:
        """Convert plain JSON values to a record: the inverse of `to_dict`.

        Raises:
            EpisodeError: a field is missing, unknown or of the wrong type, or the record is inconsistent.
        """
        episode: Episode = _build(cls, data, "")
        episode.validate()
        return episode

    def validate(self) -> None:
        """Check the types of all fields and their consistency.

        Raises:
            EpisodeError: names the first wrong field.
        """
        _check_type(self, Episode, "")
        if self.schema != SCHEMA:
            raise EpisodeError(
                f"expected {SCHEMA}, got {self.schema}: the file was written by another version, collect it again",
                "schema",
            )
        for name in ("id", "task"):
            if not getattr(self, name):
                raise EpisodeError("expected a text, got an empty string", name)
        if self.step_limit < 0:
            raise EpisodeError(f"expected 0 or more, got {self.step_limit}", "step_limit")
        kind = self.source.get("kind")
        if not isinstance(kind, str) or not kind:
            raise EpisodeError(
                f"expected the kind of the acting policy (gold, planner, ...), got {kind!r}", "source.kind"
            )
        _check_scores(self.steps, self.outcome)
        _check_subgoals(self.subgoals, len(self.steps))


def _check_scores(steps: list[Step], outcome: Outcome) -> None:
    if steps and abs(steps[-1].score - outcome.score) > _TOLERANCE:
        message = f"expected the score after the last step, {steps[-1].score:g}, got {outcome.score:g}"
        raise EpisodeError(message, "outcome.score")
    if outcome.terminated and outcome.truncated:
        raise EpisodeError("an episode cannot be both terminated and truncated", "outcome.truncated")


def _check_subgoals(subgoals: list[Subgoal], num_steps: int) -> None:
    if not subgoals:
        return
    position = 0
    for i, subgoal in enumerate(subgoals):
        if subgoal.start != position:
            message = f"expected {position} (subgoals are contiguous), got {subgoal.start}"
            raise EpisodeError(message, f"subgoals[{i}].start")
        if not subgoal.start < subgoal.end <= num_steps:
            message = f"expected {subgoal.start + 1}..{num_steps} (there are {num_steps} steps), got {subgoal.end}"
            raise EpisodeError(message, f"subgoals[{i}].end")
        if not subgoal.goal.strip():
            raise EpisodeError("expected the goal in words, got an empty text", f"subgoals[{i}].goal")
        position = subgoal.end
    if position != num_steps:
        message = f"expected {num_steps} (subgoals cover every step), got {position}"
        raise EpisodeError(message, f"subgoals[{len(subgoals) - 1}].end")


# Below: type checks. Fields are str, int, float, bool, dict, dataclasses, or lists of dataclasses.


def _build(expected: Any, value: Any, where: str) -> Any:
    """Build dataclasses from dictionaries; `Episode.validate` checks the plain values afterwards."""
    if typing.get_origin(expected) is list and isinstance(value, list):
        (item,) = typing.get_args(expected)
        return [_build(item, element, f"{where}[{i}]") for i, element in enumerate(value)]
    if not dataclasses.is_dataclass(expected):
        return value
    types = check_fields(expected, value, where, EpisodeError)
    kwargs = {name: _build(types[name], element, join_fields(where, name)) for name, element in value.items()}
    return typing.cast(type, expected)(**kwargs)


def _check_type(value: Any, expected: Any, where: str) -> None:
    origin = typing.get_origin(expected) or expected
    accepted: Any = (int, float) if origin is float else origin
    if not isinstance(value, accepted) or (isinstance(value, bool) and origin is not bool):
        raise EpisodeError(f"expected {_NAMES.get(origin, 'an object')}, got {show_value(value)}", where)
    if origin is float and not is_finite(value):
        raise EpisodeError(f"expected a finite number, got {show_value(value)}", where)
    if origin is str and (problem := encoding_error(value)):
        raise EpisodeError(problem, where)
    if origin is list:
        (item,) = typing.get_args(expected)
        for i, element in enumerate(value):
            _check_type(element, item, f"{where}[{i}]")
    elif dataclasses.is_dataclass(origin):
        for name, hint in field_types(typing.cast(type, origin)).items():
            _check_type(getattr(value, name), hint, join_fields(where, name))


_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
