"""Demonstrations as plain (observation, action) pairs, read as episodes for supervised fine-tuning."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_rft._records import encoding_error, show_value
from lit_rft.episodes.record import Episode, EpisodeError, Outcome, Step
from lit_rft.rows import json_lines

_KEYS = {"observation": str, "action": str, "episode": str, "task": str, "task_description": str}


def make_demonstrations(pairs: Iterable[tuple[str, str]], env: str = "demonstrations") -> list[Episode]:
    """Make an episode of one step from each (observation, action) pair; see `read_demonstrations`.

    Args:
        pairs: observations, each with the action that was chosen on it.
        env: name of the environment and of the task, in the records.

    Raises:
        EpisodeError: an item is no pair of texts.
    """
    episodes = []
    for number, pair in enumerate(pairs, start=1):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise EpisodeError(f"expected (observation, action), got {show_value(pair)}", f"pairs[{number - 1}]")
        episode = _episode(f"line {number}", {"observation": pair[0], "action": pair[1]}, env)
        episodes.append(_solved(episode))
    return episodes


def read_demonstrations(path: str | os.PathLike[str], env: str = "demonstrations") -> list[Episode]:
    """Read a file of JSON lines, each with an ``observation`` and the ``action`` that was chosen on it.

    Optional keys of a line: ``episode``, which is the same on consecutive lines of one episode (without it each line is
    an episode of one step); ``task``, which names the task; and on the first line of an episode ``task_description``.
    Rewards are unknown: the last step of each episode is given a reward and a score of 1, and the episode counts as
    solved.

    Args:
        path: the file.
        env: name of the environment, in the records and as the task of lines without ``task``.

    Returns:
        The episodes, in order; their subgoals are empty.

    Raises:
        EpisodeError: a line is no object, lacks a key or has a wrong one, or the lines of an episode are not together;
            the message names file, line and field.
        OSError: the file cannot be read.
    """
    episodes: list[Episode] = []
    lines: dict[str, int] = {}  # first line of each episode
    for number, row in _rows(Path(path)):
        name = row.get("episode", f"line {number}")
        if episodes and episodes[-1].id == name:
            episodes[-1].steps[-1].observation = row["observation"]
            episodes[-1].steps.append(_step(row))
            continue
        if name in lines:
            raise EpisodeError(f"the lines of episode {name!r} are not together", "episode", str(path), number)
        lines[name] = number
        episodes.append(_episode(name, row, env))
    for episode in episodes:
        try:
            _solved(episode)
        except EpisodeError as error:
            raise EpisodeError(error.message, error.field, str(path), lines[episode.id]) from error
    if not episodes:
        raise EpisodeError("expected JSON lines with an observation and an action, got an empty file", "", str(path))
    return episodes


def _solved(episode: Episode) -> Episode:
    """Give the last step its reward and score, and check the record."""
    episode.steps[-1].reward = episode.steps[-1].score = 1.0
    episode.validate()
    return episode


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, row in json_lines(path, lines, EpisodeError, finite=True):
            if not isinstance(row, dict):
                raise EpisodeError(f"expected an object, got {type(row).__name__}", "", str(path), number)
            for name in ("observation", "action"):
                if name not in row:
                    raise EpisodeError("missing", name, str(path), number)
            for name, value in row.items():
                if not isinstance(value, _KEYS.get(name, ())):
                    expected = "text" if name in _KEYS else f"one of the keys {', '.join(_KEYS)}"
                    raise EpisodeError(f"expected {expected}, got {value!r}", name, str(path), number)
                if problem := encoding_error(str(value)):
                    raise EpisodeError(problem, name, str(path), number)
            yield number, row


def _step(row: dict[str, Any]) -> Step:
    return Step(row["action"], "", 0.0, 0.0, True)


def _episode(name: str, row: dict[str, Any], env: str) -> Episode:
    return Episode(
        id=name,
        env=env,
        env_version="",
        task=row.get("task", env),
        split="train",
        source={"kind": "demonstrations"},
        task_description=row.get("task_description", ""),
        initial_observation=row["observation"],
        steps=[_step(row)],
        subgoals=[],
        outcome=Outcome(1.0, True, True, False, "goal"),
    )
