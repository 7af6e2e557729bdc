"""Collecting episodes out of a simulator that can solve its own tasks: expert ones, and worse ones made from them.

Both are one loop: a player follows the simulator's gold path, and a `Perturbation` may put random actions into it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_rft.envs.pool import EnvPool, PoolEvent
from lit_rft.envs.protocols import EpisodeJob
from lit_rft.episodes.io import EpisodeWriter, check_suffix, read_episodes, write_episodes
from lit_rft.episodes.record import Episode, Outcome, Step
from lit_rft.episodes.subgoals import Annotator, annotate_events, apply_annotator

logger = logging.getLogger(__name__)

MakeEnv = Callable[[], gym.Env[Any, Any]]

_PATH_END = "path_end"  # reason of an episode whose gold path was played to its end without solving the task


@dataclass(frozen=True)
class Perturbation:
    """Random valid actions in a gold path.

    Attributes:
        probability: of a random action at each step, in [0, 1].
        insert: False: it takes the place of the gold path's action. True: it comes in addition, and is never a
            ``focus``, which could end the episode at once.
        seed: of the steps and of the actions. (The simulator has some randomness of its own.)
    """

    probability: float
    insert: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must be in 0..1, got {self.probability}")

    def rng(self, job_id: str) -> random.Random:
        """Of one episode; its choices do not depend on which other episodes are played, or when."""
        return random.Random(f"{self.seed}/{job_id}")

    def random_steps(self, rng: random.Random, num_steps: int) -> frozenset[int]:
        """The steps at which the action is random, known before the episode begins."""
        return frozenset(i for i in range(num_steps) if rng.random() < self.probability)

    def choose(self, rng: random.Random, valid_actions: Sequence[str]) -> str:
        """One of the valid actions, none of which need be harmless."""
        allowed = [a for a in sorted(valid_actions) if not (self.insert and a.startswith("focus"))]
        return rng.choice(allowed or ["look around"])


class ValidActionsAt(gym.Wrapper[Any, Any, Any, Any]):
    """Adds ``valid_actions`` to the info at the steps named by the reset option ``valid_actions_at``.

    They cost a round trip of a tenth of a second, so nobody else pays for them. The wrapped environment must have
    `valid_actions()`.
    """

    def __init__(self, make_env: MakeEnv) -> None:
        super().__init__(make_env())
        self._at: frozenset[int] = frozenset()
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        remaining = dict(options or {})
        self._at, self._steps = remaining.pop("valid_actions_at", frozenset()), 0
        observation, info = super().reset(seed=seed, options=remaining)
        return observation, self._with_valid_actions(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self._steps += 1
        return (
            observation,
            reward,
            terminated,
            truncated,
            info if terminated or truncated else self._with_valid_actions(info),
        )

    def _with_valid_actions(self, info: dict[str, Any]) -> dict[str, Any]:
        simulator: Any = self.unwrapped
        return info | {"valid_actions": simulator.valid_actions()} if self._steps in self._at else info


def collect_expert_episodes(
    make_env: MakeEnv,
    jobs: Sequence[EpisodeJob],
    path: str | os.PathLike[str],
    *,
    num_workers: int = 2,
    annotate: Annotator = annotate_events,
    annotator: str = "events",
    progress: bool = True,
) -> list[Episode]:
    """Play the simulator's gold path of each job, up to the task's completion, and write the episodes to a file.

    Resumable: finished episodes are kept in ``<path>.partial`` while the work goes on, and neither they nor those that
    `path` has already are played again. `path` itself is written when all is done, whole: the jobs' episodes in their
    order, then others that it had.

    An episode that the step limit cuts is kept and marked ``truncated``: make the environment with a limit that the
    gold paths fit into (of ScienceWorld's, 69% have at most 50 steps, 88% at most 100).

    Args:
        make_env: see `EnvPool`; its `reset` must know the option ``gold_path``, as `ScienceWorldEnv` does.
        jobs: what to play, see `lit_rft.envs.protocols.episode_jobs`.
        path: a ``.jsonl`` or ``.parquet`` file.
        num_workers: see `EnvPool`.
        annotate: gives the subgoals, see `lit_rft.episodes.subgoals`.
        annotator: its name in the records.
        progress: whether to show a progress bar.
    Returns:
        The episodes of the jobs, in their order. A job whose environment failed for good is left out, with a warning;
        the next call tries it again.
    Raises:
        EpisodeError: `path` or its partial file is damaged, or `annotate` does not cover every step.
        ValueError: bad job options, or a suffix that is neither of the two.
        RuntimeError: not a single job succeeded.
    """
    return _collect(make_env, jobs, path, None, num_workers, annotate, annotator, progress)


def collect_perturbed_episodes(
    make_env: MakeEnv,
    jobs: Sequence[EpisodeJob],
    path: str | os.PathLike[str],
    perturbation: Perturbation,
    *,
    num_workers: int = 2,
    annotate: Annotator = annotate_events,
    annotator: str = "events",
    progress: bool = True,
) -> list[Episode]:
    """Like `collect_expert_episodes`, with random actions put into the gold paths: medium-quality data.

    An episode whose gold path is played to its end without solving the task is truncated, with the reason ``path_end``.

    Args:
        make_env: its environment must have `valid_actions()` as well.
        jobs: with their `step_limit`, up to which random actions are planned.
        perturbation: how many random actions, and how. It is part of the ids, so that several may share a file.
    Raises:
        ValueError: a job without a step limit, besides what `collect_expert_episodes` raises.
    """
    for job in jobs:
        if job.step_limit < 1:
            raise ValueError(f"job {job.id!r} needs its environment's step limit to plan random actions, got 0")
    wrapped = functools.partial(ValidActionsAt, make_env)
    return _collect(wrapped, jobs, path, perturbation, num_workers, annotate, annotator, progress)


def _collect(
    make_env: MakeEnv,
    jobs: Sequence[EpisodeJob],
    path: str | os.PathLike[str],
    perturbation: Perturbation | None,
    num_workers: int,
    annotate: Annotator,
    annotator: str,
    progress: bool,
) -> list[Episode]:
    path = Path(path)
    check_suffix(path)  # now, and not after all the work
    existing = {episode.id: episode for episode in read_episodes(path)} if path.exists() else {}
    wanted = {_episode_id(job, perturbation): job for job in jobs}
    with EpisodeWriter(path.with_name(path.name + ".partial")) as writer:
        collected = existing | {episode.id: episode for episode in writer.episodes}
        missing = [job for name, job in wanted.items() if name not in collected]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not progress) as bar, EnvPool(make_env, num_workers) as pool:
            task = bar.add_task("collecting episodes", total=len(wanted), completed=len(wanted) - len(missing))
            for job in missing:
                pool.submit(_with_options(job, perturbation))
            for played in _play(pool, perturbation):
                episode = apply_annotator(played, annotate, annotator)
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
        raise RuntimeError(f"none of {wanted} episodes could be played; the warnings above say why")
    truncated = sum(episode.outcome.truncated for episode in episodes if episode.source["kind"] == "gold")
    if truncated:
        logger.warning("%d of %d expert episodes were cut before completion: raise the step limit", truncated, wanted)
    if len(episodes) < wanted:
        logger.warning("%d of %d episodes are missing; collect again to retry them", wanted - len(episodes), wanted)


def _episode_id(job: EpisodeJob, perturbation: Perturbation | None) -> str:
    if perturbation is None:
        return f"{job.id}/gold"
    kind = "insert" if perturbation.insert else "replace"
    return f"{job.id}/perturbed-{kind}-{perturbation.probability:g}-{perturbation.seed}"


def _with_options(job: EpisodeJob, perturbation: Perturbation | None) -> EpisodeJob:
    options = job.options | {"gold_path": True}
    if perturbation is not None:
        options["valid_actions_at"] = perturbation.random_steps(perturbation.rng(job.id), job.step_limit)
    return dataclasses.replace(job, options=options)


def _play(pool: EnvPool, perturbation: Perturbation | None) -> Iterator[Episode]:
    """Play all jobs of the pool; yields each episode when it ends."""
    players: dict[int, _GoldPlayer] = {}
    while pool.outstanding:
        for event in pool.wait():
            if event.kind in ("lost", "error"):
                players.pop(event.worker, None)  # a lost job comes again, with a reset
                continue
            if event.kind == "reset":
                players[event.worker] = _GoldPlayer(event, perturbation)
            else:
                players[event.worker].observe(event)
            action = players[event.worker].next_action()
            if action is not None:
                pool.step(event.worker, action)
                continue
            pool.finish(event.worker)
            yield players.pop(event.worker).episode()


class _GoldPlayer:
    """One episode along the gold path."""

    def __init__(self, event: PoolEvent, perturbation: Perturbation | None) -> None:
        self._job = cast(EpisodeJob, event.job)  # as it was submitted
        self._perturbation = perturbation
        self._observation, self._info = event.payload
        self._latest_info = self._info
        self._gold: list[str] = self._info["gold_path"]
        self._position = 0  # on the gold path
        self._action = ""
        self._steps: list[Step] = []
        self._end: tuple[bool, bool, str] | None = None  # terminated, truncated, reason
        if perturbation is not None:
            self._rng = perturbation.rng(self._job.id)
            self._random_steps = perturbation.random_steps(self._rng, self._job.step_limit)

    def next_action(self) -> str | None:
        """What to do now; None when the episode is over."""
        if self._end is not None:
            return None
        if self._position == len(self._gold):
            self._end = (False, True, _PATH_END)
            return None
        if self._perturbation is None or len(self._steps) not in self._random_steps:
            self._action = self._gold[self._position]
            self._position += 1
        else:
            self._action = self._perturbation.choose(self._rng, self._latest_info["valid_actions"])
            self._position += not self._perturbation.insert
        return self._action

    def observe(self, event: PoolEvent) -> None:
        observation, reward, terminated, truncated, info = event.payload
        self._latest_info = info
        self._steps.append(Step(self._action, observation, reward, info["score"], info["valid"], info["achieved"]))
        if terminated or truncated:
            self._end = (terminated, truncated, info["reason"])

    def episode(self) -> Episode:
        assert self._end is not None
        terminated, truncated, reason = self._end
        score = self._steps[-1].score if self._steps else 0.0
        source: dict[str, Any] = {"kind": "gold"}
        if self._perturbation is not None:
            source = {"kind": "perturbed", **dataclasses.asdict(self._perturbation)}
        return Episode(
            id=_episode_id(self._job, self._perturbation),
            env=self._info["env"],
            env_version=self._info["env_version"],
            task=self._job.options["task"],
            variation=self._job.options["variation"],
            split=self._job.split,
            simplification=self._job.simplification,
            source=source,
            task_description=self._info["task_description"],
            initial_observation=self._observation,
            steps=self._steps,
            subgoals=[],
            outcome=Outcome(score, reason == "goal", terminated, truncated, reason),
            step_limit=self._job.step_limit,
        )
