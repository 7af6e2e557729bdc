"""Intrinsic rewards of the low level, from the conditions that the environment reports."""

from __future__ import annotations

from lit_rft.episodes.record import Episode, Subgoal
from lit_rft.episodes.subgoals import condition_text

POLICY = "policy"  # the annotator of subgoals written by a policy


def intrinsic_rewards(episode: Episode) -> list[float]:
    """Return GLIDER's r^ of each step: 1 on the action that completes its subgoal, else 0.

    A policy's subgoal is completed when the environment has reported, during the subgoal, the conditions that it names:
    one of them, or two joined by "and", as in `event_goal`. The low level's own claim does not count. An annotator's
    subgoals are derived from the events: a completed one is completed at its last step.

    Raises:
        ValueError: If the episode has steps but no subgoals.
    """
    if episode.steps and not episode.subgoals:
        raise ValueError(f"episode {episode.id!r} has no subgoals: annotate it first, or train a flat agent")
    rewards = [0.0] * len(episode.steps)
    for subgoal in episode.subgoals:
        step = completing_step(episode, subgoal)
        if step is not None:
            rewards[step] = 1.0
    return rewards


def completing_step(episode: Episode, subgoal: Subgoal) -> int | None:
    """Return the index of the step that completed a subgoal, see `intrinsic_rewards`; None if none did."""
    if subgoal.annotator != POLICY:
        return subgoal.end - 1 if subgoal.completed else None
    reported: set[str] = set()
    for index in range(subgoal.start, subgoal.end):
        reported |= {condition_text(condition) for condition in episode.steps[index].achieved}
        if _asks_for_no_more(subgoal.goal.strip(), reported):
            return index
    return None


def _asks_for_no_more(goal: str, reported: set[str]) -> bool:
    if goal in reported:
        return True
    firsts = (text for text in reported if goal.startswith(f"{text} and "))
    return any(goal[len(first) + len(" and ") :] in reported for first in firsts)
