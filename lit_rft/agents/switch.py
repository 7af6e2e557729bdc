"""The switch of SwiftSage: an ordered table of rules that chooses Swift or Sage for the next action."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class SwitchSettings:
    """Numbers of the rules; the defaults are those of the paper's code.

    Args:
        min_steps: actions before an episode can be stuck, >= 0.
        patience: steps without reward after which it can be, > 0.
        repeat_window: number of last actions among which Swift's is a repetition, > 0.
        cooldown: steps after a call of Sage in which Swift's admissible actions are taken, >= 0.
        invalid_cooldown: steps after a call of Sage in which its other actions are taken, too, >= 0.
        max_failures: invalid actions since the last call that call Sage, > 0.
        max_calls: maximum number of calls of Sage in a row, > 0.
    """

    min_steps: int = 10
    patience: int = 5
    repeat_window: int = 3
    cooldown: int = 5
    invalid_cooldown: int = 2
    max_failures: int = 2
    max_calls: int = 2

    def __post_init__(self) -> None:
        for name, least in (
            ("min_steps", 0), ("patience", 1), ("repeat_window", 1), ("cooldown", 0), ("invalid_cooldown", 0),
            ("max_failures", 1), ("max_calls", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"switch.{name} must be >= {least}, got {getattr(self, name)}")


class Situation(NamedTuple):
    """Facts about an episode before an action that Swift proposes."""

    steps: int = 0  # actions so far
    since_reward: int = 0  # steps since the last reward above 0, or since the start
    since_sage: int | None = None  # steps since the last call of Sage; None before the first
    calls: int = 0  # of Sage since Swift's last action
    failures: int = 0  # invalid actions since the last call of Sage
    admissible: bool = True  # whether the proposed action is; True if unknown
    critical: bool = False  # whether it begins as one that may decide the episode
    repeated: bool = False  # whether it is among the last actions


class Rule(NamedTuple):
    """A row of the table: if `applies`, Sage or Swift acts."""

    name: str
    sage: bool
    applies: Callable[[Situation, SwitchSettings], bool]


def _called_within(steps: int, situation: Situation) -> bool:
    return situation.since_sage is not None and situation.since_sage <= steps


RULES = (
    Rule("too many calls", False, lambda s, n: s.calls >= n.max_calls),
    Rule("failures", True, lambda s, n: s.failures >= n.max_failures),
    Rule("first critical action", True, lambda s, n: s.critical and s.since_sage is None),
    Rule("invalid after a call", False, lambda s, n: not s.admissible and _called_within(n.invalid_cooldown, s)),
    Rule("invalid", True, lambda s, n: not s.admissible),
    Rule("start", False, lambda s, n: s.steps < n.min_steps),
    Rule("after a call", False, lambda s, n: _called_within(n.cooldown - 1, s)),
    Rule("reward", False, lambda s, n: s.since_reward < n.patience),
    Rule("new action", False, lambda s, n: not s.repeated),
    Rule("stuck", True, lambda s, n: True),
)


def switch(situation: Situation, settings: SwitchSettings) -> Rule:
    """Return the first rule of `RULES` that applies."""
    return next(rule for rule in RULES if rule.applies(situation, settings))
