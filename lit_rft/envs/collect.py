"""Collection of episodes with a suite's expert: expert episodes, and medium-quality ones derived from them.

Both share one loop: a player follows the expert's actions, and a `Perturbation` may insert random actions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_rft.envs.base import EpisodeSpec, Expert, TaskSuite, expert_of
from lit_rft.envs.expert_player import PATH_END, ExpertPlayer, episode_id, source_of
from lit_rft.envs.origin import SETTINGS, check_origin, describe_origin
from lit_rft.envs.perturbation import Perturbation
from lit_rft.envs.pool import EnvPool
from lit_rft.episodes.io import EpisodeWriter, check_suffix, read_episodes, write_episodes
from lit_rft.episodes.record import Episode
from lit_rft.episodes.subgoals import Annotator, apply_annotator

logger = logging.getLogger(__name__)


def collect_expert_episodes(
    suite: TaskSuite,
    specs: Sequence[EpisodeSpec],
    path: str | os.PathLike[str],
    *,
    expert: Expert | None = None,
    num_workers: int = 2,
    annotate: Annotator | None = None,
    annotator: str = "events",
    progress: bool = True,
) -> list[Episode]:
    """Play the expert's actions of each episode, up to the task's completion, and write the episodes to a file.

    Resumable: finished episodes are kept in ``<path>.partial`` during the collection; they and the episodes in `path`
    are not played again. `path` is written atomically at the end: the episodes of `specs` in their order, then its
    others. Each record has the settings of suite and expert (``source["settings"]``).

    Episodes cut by the step limit are kept and marked ``truncated``: choose a sufficient limit (of ScienceWorld's gold
    paths, 69% have at most 50 steps, 88% at most 100).

    Args:
        suite: the tasks and their environment.
        specs: episodes to play, see `TaskSuite.episodes`.
        path: a ``.jsonl`` or ``.parquet`` file.
        expert: chooses the actions; None for the suite's own.
        num_workers: see `EnvPool`.
        annotate: annotator of subgoals, see `lit_rft.episodes.subgoals`; None for the expert's own.
        annotator: its name in the records.
        progress: show a progress bar.

    Returns:
        The episodes of `specs`, in their order. Those whose environment failed repeatedly are left out, with a warning;
        the next call retries them.

    Raises:
        EpisodeError: `path` or its partial file is corrupt, or `annotate` does not cover every step.
        ValueError: there is no expert, the environment rejects its options, the suffix is neither, or a file has
            episodes of other settings (see `lit_rft.envs.origin.check_origin`).
        RuntimeError: all episodes failed.
    """
    return _collect(suite, specs, path, None, expert, num_workers, annotate, annotator, progress)


def collect_perturbed_episodes(
    suite: TaskSuite,
    specs: Sequence[EpisodeSpec],
    path: str | os.PathLike[str],
    perturbation: Perturbation,
    *,
    expert: Expert | None = None,
    num_workers: int = 2,
    annotate: Annotator | None = None,
    annotator: str = "events",
    progress: bool = True,
) -> list[Episode]:
    """Collect episodes as `collect_expert_episodes` does, with random actions among the expert's: medium-quality data.

    If the actions run out before the task is solved, the episode is truncated with the reason ``path_end``.

    Args:
        suite: its environment must report `StepInfo.admissible`, always or where its expert requests it.
        specs: with a `step_limit`, up to which random actions are planned.
        path: see `collect_expert_episodes`, as for the other arguments.
        perturbation: number and kind of random actions; part of the ids, so that a file can hold several.

    Raises:
        ValueError: an episode has no step limit or no admissible actions, or as in `collect_expert_episodes`.
    """
    for spec in specs:
        if spec.step_limit < 1:
            raise ValueError(
                f"episode {spec.id!r} needs a step limit to plan random actions, got 0: set the suite's step_limit"
            )
    return _collect(suite, specs, path, perturbation, expert, num_workers, annotate, annotator, progress)


def _collect(
    suite: TaskSuite,
    specs: Sequence[EpisodeSpec],
    path: str | os.PathLike[str],
    perturbation: Perturbation | None,
    given_expert: Expert | None,
    num_workers: int,
    annotate: Annotator | None,
    annotator: str,
    progress: bool,
) -> list[Episode]:
    path = Path(path)
    check_suffix(path)  # before the collection
    expert = expert_of(suite) if given_expert is None else given_expert
    settings, source = describe_origin(suite, given_expert), source_of(expert, perturbation)
    existing = {episode.id: episode for episode in read_episodes(path)} if path.exists() else {}
    wanted = {episode_id(spec, expert, perturbation): spec for spec in specs}
    check_origin(existing.values(), wanted, settings, source, path)
    with EpisodeWriter(path.with_name(path.name + ".partial")) as writer:
        check_origin(writer.episodes, wanted, settings, source, writer.path)
        collected = existing | {episode.id: episode for episode in writer.episodes}
        missing = [spec for name, spec in wanted.items() if name not in collected]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not progress) as bar, EnvPool(suite.make_env, num_workers) as pool:
            task = bar.add_task("collecting episodes", total=len(wanted), completed=len(wanted) - len(missing))
            for spec in missing:
                pool.submit(_prepared(spec, expert, perturbation))
            for played in _play(pool, expert, perturbation):
                played.source = {**source, SETTINGS: settings}
                episode = apply_annotator(played, annotate or expert.annotate, annotator)
                writer.append(episode)
                collected[episode.id] = episode
                bar.advance(task)
        episodes = [collected[name] for name in wanted if name in collected]
        _report(episodes, len(wanted))
        write_episodes(path, {episode.id: episode for episode in [*episodes, *collected.values()]}.values())
        writer.path.unlink()
    return episodes


def _report(episodes: list[Episode], wanted: int) -> None:
    if wanted and not episodes:
        raise RuntimeError(f"none of {wanted} episodes could be played: see the warnings above")
    outcomes = [episode.outcome for episode in episodes if episode.source["kind"] != "perturbed"]
    stopped = sum(outcome.reason == PATH_END for outcome in outcomes)
    truncated = sum(outcome.truncated for outcome in outcomes) - stopped
    if truncated:
        logger.warning("%d of %d expert episodes were truncated early: raise the step limit", truncated, wanted)
    if stopped:
        logger.warning(
            "%d of %d expert episodes end where the expert stopped, before the environment ended them: it returned "
            "None, or its list of actions was too short", stopped, wanted,
        )  # fmt: skip
    if len(episodes) < wanted:
        logger.warning("%d of %d episodes are missing; collect again to retry them", wanted - len(episodes), wanted)


def _prepared(spec: EpisodeSpec, expert: Expert, perturbation: Perturbation | None) -> EpisodeSpec:
    steps = perturbation.random_steps(perturbation.rng(spec.id), spec.step_limit) if perturbation is not None else ()
    return expert.prepare(spec, sorted(steps))


def _play(pool: EnvPool, expert: Expert, perturbation: Perturbation | None) -> Iterator[Episode]:
    """Play all episodes of the pool; yield each at its end."""
    players: dict[int, ExpertPlayer] = {}
    while pool.outstanding:
        for event in pool.wait():
            if event.kind in ("lost", "error"):
                players.pop(event.worker, None)  # a lost episode restarts with a reset
                continue
            if event.kind == "reset":
                players[event.worker] = ExpertPlayer(event, expert, perturbation)
            else:
                players[event.worker].observe(event)
            action = players[event.worker].next_action()
            if action is not None:
                pool.step(event.worker, action)
                continue
            pool.finish(event.worker)
            yield players.pop(event.worker).episode()
