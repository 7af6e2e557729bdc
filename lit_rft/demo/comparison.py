"""The same games before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_rft.demo.intervals import gain_interval
from lit_rft.episodes import Episode
from lit_rft.metrics import wilson_interval

TOTAL = "all"
Pair = tuple[Episode, Episode]  # a game before and after


@dataclass(frozen=True)
class Row:
    """Games of one task, or all of them.

    Attributes:
        task: name of the task, or `TOTAL`.
        before: success of each game before training.
        after: of the same games after training.
        steps_before: mean number of actions in a game.
        steps_after: the same after training.
    """

    task: str
    before: tuple[bool, ...]
    after: tuple[bool, ...]
    steps_before: float
    steps_after: float

    def as_json(self) -> dict[str, Any]:
        """Return counts, shares in 0..1 and their 95% intervals."""
        number = len(self.before)
        return {
            "games": number,
            "before": sum(self.before) / number,
            "before_interval": wilson_interval(sum(self.before), number),
            "after": sum(self.after) / number,
            "after_interval": wilson_interval(sum(self.after), number),
            "gain": (sum(self.after) - sum(self.before)) / number,
            "gain_interval": gain_interval(self.before, self.after),
            "steps_before": self.steps_before,
            "steps_after": self.steps_after,
        }


def pair_games(before: Sequence[Episode], after: Sequence[Episode]) -> list[Pair]:
    """Pair the episodes of the same games, by id, in the order of their ids.

    Raises:
        ValueError: If a game is in one of the lists only, or there are none.
    """
    first, second = ({episode.id: episode for episode in episodes} for episodes in (before, after))
    if different := sorted(first.keys() ^ second.keys()):
        raise ValueError(f"expected the same games before and after, got some in one of both only: {different[:3]}")
    if not first:
        raise ValueError("expected played games to compare, got none")
    return [(first[key], second[key]) for key in sorted(first)]


def compare(pairs: Sequence[Pair]) -> list[Row]:
    """Compare the games of each task, and all of them in the last row."""
    tasks = sorted({before.task for before, _ in pairs})
    return [*(_row(task, [pair for pair in pairs if pair[0].task == task]) for task in tasks), _row(TOTAL, pairs)]


def _row(task: str, pairs: Sequence[Pair]) -> Row:
    return Row(
        task,
        tuple(before.outcome.success for before, _ in pairs),
        tuple(after.outcome.success for _, after in pairs),
        sum(len(before.steps) for before, _ in pairs) / len(pairs),
        sum(len(after.steps) for _, after in pairs) / len(pairs),
    )


def choose_example(pairs: Sequence[Pair], longest: int = 14) -> Pair:
    """Choose the game to show: one that training has solved, with only valid actions if possible, and many of them.

    Args:
        pairs: games, at least one.
        longest: number of actions above which a game is too long to read.
    """

    def rank(pair: Pair) -> tuple[bool, bool, bool, int, str]:
        before, after = pair
        readable = len(after.steps) <= longest
        valid = all(step.valid for step in after.steps)
        solved = after.outcome.success and not before.outcome.success
        return solved, valid, readable, len(after.steps) if readable else -len(after.steps), after.id

    return max(pairs, key=rank)
