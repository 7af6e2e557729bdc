"""The record of a group of rollouts: completions of a prompt, or episodes of a problem."""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass, field
from typing import Any

from lit_rft._records import RecordError, check_fields, is_finite, join_fields, show_value
from lit_rft.episodes import Episode, EpisodeError

SPLITS = ("train", "validation", "test")
_TOKEN_WISE = ("sampled_log_probs", "old_log_probs", "log_probs", "advantages", "entropy")


class RolloutRecordError(RecordError):
    """An invalid record of a group of rollouts."""


@dataclass(slots=True)
class Turn:
    """A text that the policy read, and the utterance that followed it.

    Attributes:
        prompt: the text.
        tokens: texts of the utterance's tokens; empty after the last prompt.
    """

    prompt: str
    tokens: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The utterance."""
        return "".join(self.tokens)


@dataclass(slots=True)
class Conversation:
    """The turns of a level. Token-wise values are of all its utterances' tokens in order; empty if they are unknown.

    Attributes:
        level: of the agent; `completion` for a completion.
        turns: in order.
        sampled_log_probs: log-probabilities reported by the sampler.
        old_log_probs: log-probabilities before the first update.
        log_probs: log-probabilities in the last update of the batch.
        advantages: of the tokens.
        entropy: of the policy's distribution in the last update.
        clipped: indices of tokens with an advantage but no gradient in the last update: the clip removed it.
    """

    level: str
    turns: list[Turn]
    sampled_log_probs: list[float] = field(default_factory=list)
    old_log_probs: list[float] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    clipped: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of its utterances."""
        return sum(len(turn.tokens) for turn in self.turns)


@dataclass(slots=True)
class RolloutRecord:
    """A completion or an episode.

    Attributes:
        id: of its problem or episode.
        text: the completion, or the actions of the episode.
        trace: true for an off-policy trace or expert episode.
        finished: whether it finished (EOS or stop).
        reward: its reward.
        reward_parts: rewards before they are weighted and summed, by name; empty without parts.
        advantage: of all its tokens; their mean if they have different ones.
        conversations: one per level, or per decision for agents without history.
        ground_truth: reference answer; empty for episodes.
        episode: record of an episode, with subgoals and rewards of its steps; null for a completion.
        imitated: true for a trace outside of its group: a likelihood term imitates it, and no reward is computed.
    """

    id: str
    text: str
    trace: bool
    finished: bool
    reward: float
    reward_parts: dict[str, float] = field(default_factory=dict)
    advantage: float = 0.0
    conversations: list[Conversation] = field(default_factory=list)
    ground_truth: str = ""
    episode: Episode | None = None
    imitated: bool = False


@dataclass(slots=True)
class GroupRecord:
    """All rollouts of a group.

    Attributes:
        split: `train`, `validation` or `test`.
        step: optimiser steps of the policy that sampled.
        batch: number of the training batch, from 0; of an evaluation that of the next one.
        process: rank of the process that wrote the record.
        group: number of the group in that process's batch.
        task: task of an episode, benchmark of a problem.
        rollouts: sampled ones first, imitated traces last.
    """

    split: str
    step: int
    batch: int
    process: int
    group: int
    task: str
    rollouts: list[RolloutRecord]

    def to_dict(self) -> dict[str, Any]:
        """Convert the record to plain JSON values; fields with their default are left out."""
        plain: dict[str, Any] = _to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, data: Any) -> GroupRecord:
        """Convert plain JSON values to a record: the inverse of `to_dict`.

        Raises:
            RolloutRecordError: a field is missing, unknown or of the wrong type, or the record is inconsistent.
        """
        record: GroupRecord = _build(cls, data, "")
        record.validate()
        return record

    def validate(self) -> None:
        """Check that the fields fit together.

        Raises:
            RolloutRecordError: names the first wrong field.
        """
        for name in ("step", "batch", "process", "group"):
            if getattr(self, name) < 0:
                raise RolloutRecordError(f"expected 0 or more, got {getattr(self, name)}", name)
        if self.split not in SPLITS:
            raise RolloutRecordError(f"expected one of {', '.join(SPLITS)}, got {show_value(self.split)}", "split")
        for i, rollout in enumerate(self.rollouts):
            for k, conversation in enumerate(rollout.conversations):
                _check_tokens(conversation, f"rollouts[{i}].conversations[{k}]")


def _check_tokens(conversation: Conversation, where: str) -> None:
    number = conversation.num_tokens
    for name in _TOKEN_WISE:
        if len(values := getattr(conversation, name)) not in (0, number):
            raise RolloutRecordError(
                f"expected a value for each of {number} tokens, got {len(values)}", f"{where}.{name}"
            )
    if any(not 0 <= index < number for index in conversation.clipped):
        raise RolloutRecordError(f"expected indices of {number} tokens, got {conversation.clipped}", f"{where}.clipped")


def _to_plain(value: Any) -> Any:
    if isinstance(value, Episode):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        pairs = ((f, getattr(value, name)) for name, f in _fields(value.__class__).items())
        return {f.name: _to_plain(item) for f, item in pairs if not _is_default(f, item)}
    if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
        return [_to_plain(item) for item in value]
    return value


def _is_default(field_: dataclasses.Field[Any], value: Any) -> bool:
    if field_.default_factory is not dataclasses.MISSING:
        return not value
    return field_.default is not dataclasses.MISSING and value == field_.default


@functools.cache
def _fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(cls)}


def _build(expected: Any, value: Any, where: str) -> Any:
    """Convert plain values to the expected type and check them."""
    if expected == Episode | None:
        return None if value is None else _episode(value, where)
    if dataclasses.is_dataclass(expected):
        return _build_record(typing.cast(type, expected), value, where)
    origin, arguments = typing.get_origin(expected) or expected, typing.get_args(expected)
    accepted: Any = (int, float) if origin is float else origin
    if not isinstance(value, accepted) or (isinstance(value, bool) and origin is not bool):
        raise RolloutRecordError(f"expected {_NAMES[origin]}, got {show_value(value)}", where)
    items: Any = value
    if origin is float and not is_finite(value):
        raise RolloutRecordError(f"expected a finite number, got {show_value(value)}", where)
    if origin is list:
        plain = set(map(type, items)) <= _PLAIN.get(arguments[0], set())  # token-wise values are many
        if plain and (arguments[0] is not float or all(map(is_finite, items))):
            return value
        return [_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in items.items()}
    return value


def _build_record(cls: type, value: Any, where: str) -> Any:
    types = check_fields(cls, value, where, RolloutRecordError)
    return cls(**{name: _build(types[name], item, join_fields(where, name)) for name, item in value.items()})


def _episode(value: Any, where: str) -> Episode:
    try:
        return Episode.from_dict(value)
    except EpisodeError as error:
        raise RolloutRecordError(error.message, f"{where}.{error.field}") from error


_PLAIN: dict[Any, set[type]] = {str: {str}, int: {int}, float: {int, float}}
_NAMES = {str: "a text", int: "an integer", float: "a number", bool: "true or false", list: "a list", dict: "an object"}
