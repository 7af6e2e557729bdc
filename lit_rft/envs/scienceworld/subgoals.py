"""Subgoals in ScienceWorld's words: the choice of conditions for goals."""

from __future__ import annotations

from lit_rft.episodes.record import Achieved, Episode
from lit_rft.episodes.subgoals import Segment, annotate_events

_RANKS = ("prog:", "room:")  # sequential conditions, rooms; optional ones come last


def annotate_scienceworld(episode: Episode) -> list[Segment]:
    """Annotate events, with sequential conditions before rooms, and rooms before optional conditions."""
    return annotate_events(episode, rank, without_side_effects)


def rank(condition: Achieved) -> int:
    """Return the rank of a condition: lower ranks tell more about the task."""
    return next((rank for rank, prefix in enumerate(_RANKS) if condition.key.startswith(prefix)), len(_RANKS))


def without_side_effects(achieved: list[Achieved]) -> list[Achieved]:
    """Remove conditions that entering a room also meets, such as "be in same location as water".

    The room describes them better.
    """
    if not any(condition.key.startswith("room:") for condition in achieved):
        return achieved
    return [condition for condition in achieved if not condition.key.startswith("opt:")]
