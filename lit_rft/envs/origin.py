"""Settings that made stored episodes: a file is extended by episodes of the same settings only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_rft._plain import with_class
from lit_rft.envs.base import EpisodeSpec, Expert, TaskSuite, describe_settings
from lit_rft.episodes.record import Episode

SETTINGS = "settings"  # key of `Episode.source`


def describe_origin(suite: TaskSuite, expert: Expert | None = None) -> dict[str, Any]:
    """Describe what makes episodes, as plain data: the suite, and an expert in place of the suite's own.

    Functions are described by their names: a change in their code makes no difference.
    """
    settings: dict[str, Any] = {"suite": describe_settings(suite)}
    if expert is not None:
        settings["expert"] = with_class(expert, deep=True)
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # as it is read from a file
    return plain


def check_origin(
    episodes: Iterable[Episode],
    wanted: Mapping[str, EpisodeSpec],
    settings: Mapping[str, Any],
    source: Mapping[str, Any],
    path: Path,
) -> None:
    """Check that stored episodes are what a new collection would make in their place, and beside them.

    Args:
        episodes: stored ones.
        wanted: id -> specification of the episodes to collect.
        settings: see `describe_origin`.
        source: ``source`` of the new records, without the settings.
        path: file of the stored episodes, for the error.

    Raises:
        ValueError: an episode of the same id has another step limit or problem, or one of the same task has other
            settings. Random actions may differ: they are no part of the settings. Episodes of another kind without
            settings (pairs, or a policy's own) were not collected, and are not compared.
    """
    tasks = {spec.task for spec in wanted.values()}
    for episode in episodes:
        kind = {key: value for key, value in episode.source.items() if key != SETTINGS}
        spec = wanted.get(episode.id)
        is_comparable = kind == source or SETTINGS in episode.source
        if spec is None and not (is_comparable and episode.task in tasks):
            continue
        differences = list(_differences(episode.source.get(SETTINGS), settings))
        if spec is not None:
            differences += _differences(
                {"step_limit": episode.step_limit, "meta": episode.meta},
                {"step_limit": spec.step_limit, "meta": json.loads(json.dumps(spec.meta))},
            )
        if differences:
            raise ValueError(
                f"{path} has episodes of other settings, which a collection would keep: {'; '.join(differences[:3])}. "
                "Write to another file, or delete this one"
            )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Yield the settings that differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".removeprefix("."))
    elif old != new:
        yield f"{key or 'settings'} was {_show(old)}, is {_show(new)}"


def _show(value: Any) -> str:
    text = "not recorded" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
