"""Collection of episodes with a suite's expert: expert episodes, and medium-quality ones derived from them.

Both share one loop: a player follows the expert's actions, and a `Perturbation` may insert random actions.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_rft._records import show_value
from lit_rft.envs.base import EpisodeSpec, Expert, ExpertPolicy, TaskSuite, expert_of
from lit_rft.envs.origin import SETTINGS, check_origin, describe_origin
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_events import PoolEvent
from lit_rft.episodes.io import EpisodeWriter, check_suffix, read_episodes, write_episodes
from lit_rft.episodes.record import ADMISSIBLE, Episode, Outcome, Step
from lit_rft.episodes.subgoals import Annotator, apply_annotator

logger = logging.getLogger(__name__)

_PATH_END = "path_end"  # reason of an episode whose expert's actions ran out before the task was solved


@dataclass(frozen=True)
class Perturbation:
    """Random actions among an expert's.

    Attributes:
        probability: of a random action at each step, in [0, 1].
        insert: False: replace the expert's action. True: insert an additional action, never one that could end the
            episode at once (`Expert.irreversible`).
        seed: of the steps and the actions. (The simulator has some randomness of its own.)
    """

    probability: float
    insert: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must be in 0..1, got {self.probability}")

    def rng(self, job_id: str) -> random.Random:
        """Return the random generator of an episode; its choices do not depend on other episodes."""
        return random.Random(f"{self.seed}/{job_id}")

    def random_steps(self, rng: random.Random, num_steps: int) -> frozenset[int]:
        """Choose the steps with a random action, before the episode starts."""
        return frozenset(i for i in range(num_steps) if rng.random() < self.probability)

    def choose(self, rng: random.Random, admissible: Sequence[str], irreversible: tuple[str, ...]) -> str | None:
        """Choose an admissible action, at random; None if none is allowed."""
        allowed = [a for a in sorted(admissible) if not (self.insert and a.startswith(irreversible))]
        return rng.choice(allowed) if allowed else None


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
    settings, source = describe_origin(suite, given_expert), _source(expert, perturbation)
    existing = {episode.id: episode for episode in read_episodes(path)} if path.exists() else {}
    wanted = {_episode_id(spec, expert, perturbation): spec for spec in specs}
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
    truncated = sum(episode.outcome.truncated for episode in episodes if episode.source["kind"] != "perturbed")
    if truncated:
        logger.warning("%d of %d expert episodes were truncated early: raise the step limit", truncated, wanted)
    if len(episodes) < wanted:
        logger.warning("%d of %d episodes are missing; collect again to retry them", wanted - len(episodes), wanted)


def _episode_id(spec: EpisodeSpec, expert: Expert, perturbation: Perturbation | None) -> str:
    if perturbation is None:
        return f"{spec.id}/{expert.kind}"
    kind = "insert" if perturbation.insert else "replace"
    return f"{spec.id}/perturbed-{kind}-{perturbation.probability:g}-{perturbation.seed}"


def _source(expert: Expert, perturbation: Perturbation | None) -> dict[str, Any]:
    """Return ``source`` of the records, without the settings."""
    if perturbation is None:
        return {"kind": expert.kind}
    return {"kind": "perturbed", **dataclasses.asdict(perturbation)}


def _prepared(spec: EpisodeSpec, expert: Expert, perturbation: Perturbation | None) -> EpisodeSpec:
    steps = perturbation.random_steps(perturbation.rng(spec.id), spec.step_limit) if perturbation is not None else ()
    return expert.prepare(spec, sorted(steps))


def _play(pool: EnvPool, expert: Expert, perturbation: Perturbation | None) -> Iterator[Episode]:
    """Play all episodes of the pool; yield each at its end."""
    players: dict[int, _ExpertPlayer] = {}
    while pool.outstanding:
        for event in pool.wait():
            if event.kind in ("lost", "error"):
                players.pop(event.worker, None)  # a lost episode restarts with a reset
                continue
            if event.kind == "reset":
                players[event.worker] = _ExpertPlayer(event, expert, perturbation)
            else:
                players[event.worker].observe(event)
            action = players[event.worker].next_action()
            if action is not None:
                pool.step(event.worker, action)
                continue
            pool.finish(event.worker)
            yield players.pop(event.worker).episode()


class _ExpertPlayer:
    """A player of one episode by the expert's actions."""

    def __init__(self, event: PoolEvent, expert: Expert, perturbation: Perturbation | None) -> None:
        self._spec, self._expert, self._perturbation = event.job, expert, perturbation
        self._observation, self._info = event.payload
        self._latest_observation, self._latest_info = self._observation, self._info
        self._admissible: list[list[str] | None] = [self._info.get("admissible")]
        self._act: ExpertPolicy | None = getattr(expert, "act", None)
        self._script = [] if self._act else list(expert.actions(self._spec, self._info))
        self._position = 0  # in the script
        self._action = ""
        self._steps: list[Step] = []
        self._end: tuple[bool, bool, str] | None = None  # terminated, truncated, reason
        if perturbation is not None:
            self._rng = perturbation.rng(self._spec.id)
            self._random_steps = perturbation.random_steps(self._rng, self._spec.step_limit)

    def next_action(self) -> str | None:
        """Return the next action; None at the end of the episode."""
        if self._end is not None:
            return None
        expert_action = self._expert_action()
        if expert_action is None:
            self._end = (False, True, _PATH_END)
            return None
        random_action = self._random_action()
        self._action = expert_action if random_action is None else random_action
        if random_action is None or (self._perturbation is not None and not self._perturbation.insert):
            self._position += 1
        return self._action

    def _expert_action(self) -> str | None:
        """Return the expert's next action; None after its last."""
        if self._act is not None:
            action = self._act(self._latest_observation, self._latest_info)
            if not isinstance(action, str | None):
                raise ValueError(f"an expert must return text, or None to stop; got {show_value(action)}")
            return action
        return self._script[self._position] if self._position < len(self._script) else None

    def _random_action(self) -> str | None:
        """Return a random action if one is planned for this step."""
        if self._perturbation is None or len(self._steps) not in self._random_steps:
            return None
        if "admissible" not in self._latest_info:
            raise ValueError(
                f"{self._info['env']} reports no admissible actions (StepInfo.admissible), which perturbations need"
            )
        return self._perturbation.choose(self._rng, self._latest_info["admissible"], self._expert.irreversible)

    def observe(self, event: PoolEvent) -> None:
        observation, reward, terminated, truncated, info = event.payload
        self._latest_observation, self._latest_info = observation, info
        self._admissible.append(info.get("admissible"))
        self._steps.append(Step(self._action, observation, reward, info["score"], info["valid"], info["achieved"]))
        if terminated or truncated:
            self._end = (terminated, truncated, info["reason"])

    def episode(self) -> Episode:
        assert self._end is not None
        terminated, truncated, reason = self._end
        score, success = self._latest_info["score"], self._latest_info.get("success", False)
        return Episode(
            id=_episode_id(self._spec, self._expert, self._perturbation),
            env=self._info["env"],
            env_version=self._info["env_version"],
            task=self._spec.task,
            split=self._spec.split,
            source=_source(self._expert, self._perturbation),
            task_description=self._info["task_description"],
            initial_observation=self._observation,
            steps=self._steps,
            subgoals=[],
            outcome=Outcome(score, success, terminated, truncated, reason),
            step_limit=self._spec.step_limit,
            meta=dict(self._spec.meta),
            extra=self._extra(),
        )

    def _extra(self) -> dict[str, Any]:
        """Return the environment's metrics, and its admissible actions where it always reports them."""
        extra: dict[str, Any] = {}
        if self._latest_info["metrics"]:
            extra["metrics"] = self._latest_info["metrics"]
        if None not in self._admissible:
            extra[ADMISSIBLE] = [list(actions or ()) for actions in self._admissible]
        return extra
