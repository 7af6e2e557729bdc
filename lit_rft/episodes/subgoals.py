"""Subgoals of an episode, from the environment's events or from a user's annotator.

An annotator is a callable ``annotate(episode) -> [(start, end, goal), ...]`` over step indices, ``[start, end)``. A
segment may have a fourth element, whether its last step reached the goal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from lit_rft.episodes.record import Achieved, Episode, EpisodeError, Subgoal

Segment = tuple[int, int, str]
Annotator = Callable[[Episode], Iterable[Segment | tuple[int, int, str, bool]]]

UNFINISHED_GOAL = "continue with the task"  # goal of the steps after the last achieved condition
DONE, CONTINUE = "done", "continue"  # flags of an action: whether it completes its subgoal
MAX_DESCRIPTIONS = 2  # conditions per goal


def annotate_events(
    episode: Episode,
    rank: Callable[[Achieved], int] = lambda condition: 0,
    select: Callable[[list[Achieved]], list[Achieved]] = list,
) -> list[Segment]:
    """Cut the episode after each step with a condition that the environment reports for the first time.

    A segment of a single step joins the next one. The goal of a segment describes its conditions, see `event_goal`.
    Steps after the last event are one more segment, with the goal `UNFINISHED_GOAL`.

    Args:
        episode: the episode.
        rank: rank of a condition: goals name those of lower ranks first.
        select: selects the conditions that goals may name from the new ones of a step; at least one.
    """
    segments: list[Segment] = []
    start, achieved = 0, []
    news = _first_reports(episode)
    events = [i for i, conditions in enumerate(news) if conditions]
    for i in events:
        achieved += sorted(select(news[i]), key=rank)
        if i > start or i == events[-1]:
            segments.append((start, i + 1, event_goal(achieved, rank)))
            start, achieved = i + 1, []
    if start < len(episode.steps):
        segments.append((start, len(episode.steps), UNFINISHED_GOAL))
    return segments


def _first_reports(episode: Episode) -> list[list[Achieved]]:
    """Return each step's conditions that are new in the episode (a room may be entered again)."""
    seen: set[str] = set()
    news = []
    for step in episode.steps:
        news.append([condition for condition in step.achieved if condition.key not in seen])
        seen.update(condition.key for condition in step.achieved)
    return news


def event_goal(achieved: list[Achieved], rank: Callable[[Achieved], int] = lambda condition: 0) -> str:
    """Describe conditions as a goal in words, in their order.

    Only the `MAX_DESCRIPTIONS` conditions of the lowest ranks are named.

    Args:
        achieved: the conditions, at least one.
        rank: rank of a condition.
    """
    texts: dict[str, int] = {}  # description -> rank, without duplicates
    for condition in achieved:
        text = condition_text(condition)
        texts[text] = min(rank(condition), texts.get(text, rank(condition)))
    chosen = sorted(texts, key=lambda text: texts[text])[:MAX_DESCRIPTIONS]
    return " and ".join(text for text in texts if text in chosen)


def apply_annotator(episode: Episode, annotate: Annotator, name: str) -> Episode:
    """Copy the episode with the annotator's subgoals.

    A subgoal counts as completed, except the last one of an episode that ended without success and without an event,
    unless the annotator says for each whether it was.

    Args:
        episode: the episode.
        annotate: the annotator.
        name: name of the annotator, stored in each subgoal.

    Raises:
        EpisodeError: the segments are not contiguous, empty, or do not cover every step; the message names the
            annotator.
    """
    if not episode.steps:  # such as one whose first prompt filled the context: annotators look at steps
        return dataclasses.replace(episode, subgoals=[])
    subgoals = []
    segments = list(annotate(episode))
    for i, segment in enumerate(segments):
        try:
            start, end, goal, completed = segment if len(segment) == 4 else (*segment, None)
        except (TypeError, ValueError) as error:
            expected = "(start, end, goal), or with a fourth element, completed"
            message = f"annotator {name!r}: expected {expected}; got {segment!r}"
            raise EpisodeError(message, f"subgoals[{i}]") from error
        if completed is None:
            completed = i + 1 < len(segments) or _last_is_completed(episode)
        subgoals.append(Subgoal(start, end, goal, completed, annotator=name))
    if not subgoals:
        raise EpisodeError(
            f"annotator {name!r}: expected segments for {len(episode.steps)} steps, got none", "subgoals"
        )
    annotated = dataclasses.replace(episode, subgoals=subgoals)
    try:
        annotated.validate()
    except EpisodeError as error:
        raise EpisodeError(f"annotator {name!r}: {error.message}", error.field) from error
    return annotated


def condition_text(condition: Achieved) -> str:
    """Return the words for a condition in a goal."""
    return condition.text.strip() or condition.key


def _last_is_completed(episode: Episode) -> bool:
    if episode.outcome.terminated:
        return episode.outcome.success
    return episode.outcome.success or bool(_first_reports(episode)[-1])
