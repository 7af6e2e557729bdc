"""Trials of each problem in an evaluation, for agents that play a problem again after a failure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lit_rft.agents import Agent
from lit_rft.agents.optional import next_trial_of
from lit_rft.envs.base import EpisodeSpec
from lit_rft.episodes import Episode
from lit_rft.metrics import EpisodeMetrics


class Trials:
    """The trials of the problems of an evaluation, and their metrics.

    An agent with `next_trial(spec, trials)`, or around one with it, decides whether a problem is played again (None: it
    is not); any other agent plays each problem once.

    Args:
        agent: the agent.
        tasks: names of all tasks of the evaluation.
        device: of the metrics.
    """

    def __init__(self, agent: Agent, tasks: Sequence[str], device: Any = None) -> None:
        self._next = next_trial_of(agent)
        self._running: dict[str, tuple[EpisodeSpec, list[Episode]]] = {}  # id of the trial -> problem, earlier trials
        names = ("first", "last", "best") if self._next else ("first",)
        self._metrics = {name: EpisodeMetrics(tasks).to(device) for name in names}

    @property
    def repeated(self) -> bool:
        """True if the agent may play a problem again."""
        return self._next is not None

    @property
    def num_unfinished(self) -> int:
        """Number of problems in progress."""
        return len(self._running)

    def start(self, problems: Sequence[EpisodeSpec], finished: Mapping[str, Episode]) -> list[EpisodeSpec]:
        """Return the next trial of each problem.

        Args:
            problems: specifications.
            finished: trials of an earlier run, by their ids.
        """
        specs = []
        for problem in problems:
            trials: list[Episode] = []
            spec = self._following(problem, trials)
            while spec is not None and spec.id in finished:
                trials.append(finished[spec.id])
                spec = self._following(problem, trials)
            specs += self._continue(problem, trials, spec)
        return specs

    def after(self, episode: Episode) -> list[EpisodeSpec]:
        """Count a trial, and return the next one of its problem, if there is one."""
        problem, trials = self._running.pop(episode.id)
        trials.append(episode)
        failed = episode.outcome.reason == "env_error"
        return self._continue(problem, trials, None if failed else self._following(problem, trials))

    def _following(self, problem: EpisodeSpec, trials: Sequence[Episode]) -> EpisodeSpec | None:
        if self._next is None:
            return None if trials else problem
        return self._next(problem, trials)

    def _continue(self, problem: EpisodeSpec, trials: list[Episode], spec: EpisodeSpec | None) -> list[EpisodeSpec]:
        if spec is None:
            self._count(trials)
            return []
        self._running[spec.id] = (problem, trials)
        return [spec]

    def _count(self, trials: Sequence[Episode]) -> None:
        """Count the trials of a problem that is finished."""
        chosen = {"first": trials[0], "last": trials[-1], "best": max(trials, key=_rank)}
        for name, metric in self._metrics.items():
            metric.update(_with_counts(chosen[name], trials) if name == "first" and self.repeated else chosen[name])

    def compute(self) -> dict[str, dict[str, float]]:
        """Return the table of the first trials, with scores of the last and best trials as further columns."""
        tables = {name: metric.compute() for name, metric in self._metrics.items()}
        table = tables.pop("first")
        for name, other in tables.items():
            for task, row in other.items():
                table[task] |= {f"{name}_trial/{column}": row[column] for column in ("score", "success")}
        return table


def _rank(trial: Episode) -> tuple[bool, bool, float]:
    outcome = trial.outcome
    return outcome.reason != "env_error", outcome.success, outcome.score


def _with_counts(first: Episode, trials: Sequence[Episode]) -> Episode:
    counts = {"trials": float(len(trials)), "steps_of_all_trials": float(sum(len(trial.steps) for trial in trials))}
    return replace(first, extra={**first.extra, "metrics": {**first.extra.get("metrics", {}), **counts}})
