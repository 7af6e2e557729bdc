"""Subgoals in ScienceWorld's words: which of the conditions that it reports a goal should name."""

from __future__ import annotations

from lit_rft.episodes.record import Achieved, Episode
from lit_rft.episodes.subgoals import Segment, annotate_events

_RANKS = ("prog:", "room:")  # sequential conditions, rooms; optional ones come last


def annotate_scienceworld(episode: Episode) -> list[Segment]:
    """`annotate_events` that names sequential conditions before rooms, and rooms before optional conditions."""
    return annotate_events(episode, rank, without_side_effects)


def rank(condition: Achieved) -> int:
    """The lower, the more a condition says about the task."""
    return next((rank for rank, prefix in enumerate(_RANKS) if condition.key.startswith(prefix)), len(_RANKS))


def without_side_effects(achieved: list[Achieved]) -> list[Achieved]:
    """Entering a room also meets conditions such as "be in same location as water": the room describes it better."""
    if not any(condition.key.startswith("room:") for condition in achieved):
        return achieved
    return [condition for condition in achieved if not condition.key.startswith("opt:")]
