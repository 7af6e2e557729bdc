"""The record of one episode, from which every view for training is derived.

Plain dataclasses: no torch, no numpy, nothing that a JSON line could not hold. Rewards and scores are the environment's
own: any finite numbers. Where a solved task has score 1.0, reports, which multiply by 100, are in percent.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from dataclasses import dataclass, field
from typing import Any

from lit_rft._records import RecordError, show_value

SCHEMA = 2
_TOLERANCE = 1e-6  # of differences of scores


class EpisodeError(RecordError):
    """A record that is no episode."""


@dataclass(slots=True)
class Achieved:
    """A condition that the environment reported as met by a step.

    Attributes:
        key: the environment's name for it. Reported again, it counts as the same condition.
        text: the condition in words; a goal that asks for it consists of them.
    """

    key: str
    text: str


@dataclass(slots=True)
class Step:
    """One action and what followed it.

    Attributes:
        action: text given to the environment.
        observation: the observation that the action led to.
        reward: the environment's reward.
        score: the score after this step; the sum of the rewards where the environment has no other.
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
    """A stretch of steps that serves one goal.

    Attributes:
        start: index of its first step.
        end: index after its last step.
        goal: the goal in words.
        completed: whether the last of its steps reached the goal.
        annotator: who said so: ``events``, ``policy``, or the name of a user's own annotator.
    """

    start: int
    end: int
    goal: str
    completed: bool
    annotator: str


@dataclass(slots=True)
class Outcome:
    """How an episode ended.

    Attributes:
        score: final score.
        success: whether the task was solved.
        terminated: the environment ended it (a value function must not bootstrap).
        truncated: it was cut from outside, by a step limit for instance (a value function bootstraps).
        reason: ``goal``, ``failed``, ``step_limit``, ``env_error``, or another short word.
    """

    score: float
    success: bool
    terminated: bool
    truncated: bool
    reason: str


@dataclass(slots=True)
class Episode:
    """One episode, whole.

    Attributes:
        id: unique in its data set.
        env, env_version: ``scienceworld`` and the version of the simulator, for example.
        task, split: name of the task, and split of the data that the problem is of.
        source: who played it; ``source["kind"]`` is ``gold``, ``planner``, ``perturbed`` or ``policy``.
        task_description: the task in words.
        initial_observation: what was seen before the first step.
        steps: what was done; empty when the environment failed before the first step.
        subgoals: contiguous and covering all steps, or empty when nobody has annotated the episode.
        outcome: how it ended.
        schema: version of this record.
        step_limit: limit it was played under, in steps; 0 for none.
        meta: identifies the problem within its task (`EpisodeSpec.meta`); JSON values only.
        extra: whatever else is worth keeping, JSON values only.
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
        """The undiscounted return. The score may be another one."""
        return sum(step.reward for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values, ``schema`` first."""
        return {"schema": self.schema} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Episode:
        """The inverse of `to_dict`.

        Raises:
            EpisodeError: a field is missing, unknown, of the wrong type, or the record contradicts itself.
        """
        episode: Episode = _build(cls, data, "")
        episode.validate()
        return episode

    def validate(self) -> None:
        """Check the types of all fields and that they agree with each other.

        Raises:
            EpisodeError: naming the first field that is wrong.
        """
        _check_type(self, Episode, "")
        if self.schema != SCHEMA:
            raise EpisodeError(f"expected {SCHEMA}, got {self.schema}: written by another version", "schema")
        for name in ("id", "task"):
            if not getattr(self, name):
                raise EpisodeError("expected some text, got an empty string", name)
        if self.step_limit < 0:
            raise EpisodeError(f"expected 0 or more, got {self.step_limit}", "step_limit")
        kind = self.source.get("kind")
        if not isinstance(kind, str) or not kind:
            raise EpisodeError(f"expected who played (gold, planner, ...), got {kind!r}", "source.kind")
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


# From here on: types. A hand of annotations is in use (str, int, float, bool, dict, list of a dataclass, a dataclass).


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _build(expected: Any, value: Any, where: str) -> Any:
    """Make dataclasses out of dictionaries; `Episode.validate` looks at the plain values afterwards."""
    if typing.get_origin(expected) is list and isinstance(value, list):
        (item,) = typing.get_args(expected)
        return [_build(item, element, f"{where}[{i}]") for i, element in enumerate(value)]
    if not dataclasses.is_dataclass(expected):
        return value
    if not isinstance(value, dict):
        raise EpisodeError(f"expected an object, got {show_value(value)}", where)
    known = {f.name: f for f in dataclasses.fields(expected)}
    for name in value:
        if name not in known:
            raise EpisodeError(f"unknown field; known are {', '.join(known)}", _join(where, str(name)))
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise EpisodeError("missing", _join(where, name))
    hints = _hints(typing.cast(type, expected))
    kwargs = {name: _build(hints[name], element, _join(where, name)) for name, element in value.items()}
    return typing.cast(type, expected)(**kwargs)


def _check_type(value: Any, expected: Any, where: str) -> None:
    origin = typing.get_origin(expected) or expected
    accepted: Any = (int, float) if origin is float else origin
    if not isinstance(value, accepted) or (isinstance(value, bool) and origin is not bool):
        raise EpisodeError(f"expected {_NAMES.get(origin, 'an object')}, got {show_value(value)}", where)
    if origin is float and not math.isfinite(value):
        raise EpisodeError(f"expected a finite number, got {value}", where)
    if origin is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise EpisodeError(f"expected text that UTF-8 can hold: {error}", where) from error
    if origin is list:
        (item,) = typing.get_args(expected)
        for i, element in enumerate(value):
            _check_type(element, item, f"{where}[{i}]")
    elif dataclasses.is_dataclass(origin):
        for name, hint in _hints(typing.cast(type, origin)).items():
            _check_type(getattr(value, name), hint, _join(where, name))


_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
