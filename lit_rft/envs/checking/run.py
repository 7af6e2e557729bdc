"""The course of a check: episodes, actions, and conclusions from the results."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rft.envs.base import EpisodeSpec, ExpertPolicy
from lit_rft.envs.checking.examiner import WORDS
from lit_rft.envs.checking.report import DEFAULTS, EnvReport
from lit_rft.envs.info_keys import RESET_ONLY
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_events import PoolEvent

ODD_ACTIONS = ("", "two\nlines", "x" * 5000, "日本語", '{"json": 1}')


class FailedError(Exception):
    """The environment did not respond, or could not be made.

    Args:
        where: the call.
        message: description of the failure.
    """

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


@dataclass
class Transition:
    """The result of one call: text, reward and ends, and the examiner's report as `info`."""

    observation: str
    info: dict[str, Any]
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated or self.info["failed"]

    def comparable(self) -> tuple[Any, ...]:
        """Return the values that must be equal for the same seed and actions."""
        return self.observation, self.reward, self.terminated, self.truncated


class CheckRun:
    """One run of `check_env`.

    Args:
        pool: of one worker, with an `Examiner`.
        report: receives the findings.
        expert: chooses the actions; None for random ones.
        rng: of the random actions.
        has_limit: the episodes have a step limit of their own.
    """

    def __init__(
        self,
        pool: EnvPool,
        report: EnvReport,
        expert: ExpertPolicy | None,
        rng: random.Random,
        has_limit: bool = False,
    ) -> None:
        self._pool, self._report, self._expert, self._rng = pool, report, expert, rng
        self._has_limit = has_limit
        self._seconds: dict[str, list[float]] = {"reset": [], "step": []}
        self._calls = 0

    def run(self, specs: Sequence[EpisodeSpec]) -> None:
        """Run all parts of the check.

        Raises:
            FailedError: the environment has failed, so that no other part can run.
        """
        first: list[tuple[str, Transition]] = []
        for spec in specs:
            episode = self._play(spec, self._choose)
            first = first or episode
            self._count(episode)
        self._report.resets_per_second = _rate(self._seconds["reset"])
        self._report.steps_per_second = _rate(self._seconds["step"])
        self._judge_returns(specs)
        if not self._report.errors:
            self._repeat(specs[0], first)
        actions = iter(ODD_ACTIONS)
        self._play(specs[0], lambda now: next(actions, None))
        for part in ("close", "gymnasium"):  # gymnasium's checker makes another environment
            self._reset(specs[0], part)
            self._pool.finish(0)

    def _play(self, spec: EpisodeSpec, choose: Callable[[Transition], str | None]) -> list[tuple[str, Transition]]:
        """Play an episode; return its actions, the first of them empty, with their results."""
        now = self._reset(spec, "play")
        self._take_keys(now, "reset")
        episode = [("", now)]
        while not now.over:
            action = choose(now)
            if action is None:
                break
            self._pool.step(0, action)
            now = self._answer(f"step({action[:40]!r})")
            self._take_keys(now, "step")
            episode.append((action, now))
        self._pool.finish(0)
        return episode

    def _reset(self, spec: EpisodeSpec, part: str) -> Transition:
        self._calls += 1
        options = {"part": part, "options": spec.options, "step_limit": spec.step_limit}
        self._pool.submit(EpisodeSpec(str(self._calls), "", "", spec.seed, options, spec.step_limit))
        return self._answer("reset" if part == "play" else part)

    def _answer(self, where: str) -> Transition:
        try:
            (event,) = self._pool.wait()
        except Exception as error:  # the worker could not import the environment
            raise FailedError("constructor", str(error)) from error
        if event.kind == "error":
            raise FailedError(where, str(event.payload))
        answer = _transition(event)
        for finding in answer.info["findings"]:
            self._report.add(*finding)
            if not answer.info["made"]:
                raise FailedError(finding.where, finding.message)
        return answer

    def _take_keys(self, answer: Transition, method: str) -> None:
        """Record the time of a call and the keys of its info."""
        if not answer.info["failed"]:
            self._seconds[method].append(answer.info["seconds"])
        for name in answer.info["keys"]:
            if name in DEFAULTS and not (method == "step" and name in RESET_ONLY):
                known = self._report.keys.get(name, "")
                self._report.keys[name] = known if method in known else f"{known}, {method}".removeprefix(", ")

    def _choose(self, now: Transition) -> str | None:
        info = now.info["info"]
        if self._expert is None:
            return self._rng.choice((info or {}).get("admissible") or WORDS)
        return None if info is None else self._expert(now.observation, info)  # as in collection, which would end here

    def _count(self, episode: list[tuple[str, Transition]]) -> None:
        """Take an episode's figures, unless it failed: it has no return, and did not end by itself."""
        if not self._report.example:
            self._report.example = [(action, now.observation) for action, now in episode if not now.info["failed"]]
        if episode[-1][1].info["failed"]:
            self._report.failed += 1
            return
        self._report.returns.append(sum(now.reward for _, now in episode))
        self._report.lengths.append(len(episode) - 1)
        last = episode[-1][1]
        self._report.ended.append(last.terminated or (last.truncated and not last.info["at_limit"]))

    def _judge_returns(self, specs: Sequence[EpisodeSpec]) -> None:
        report = self._report
        if not report.returns:  # none was played to its end: errors say why
            return
        if not any(report.ended):
            limit = max(spec.step_limit for spec in specs)
            advice = "" if self._has_limit else ": give the suite a step_limit"
            report.add("note", "step", f"no episode ended by itself within {limit} steps{advice}")
        if len(report.returns) > 1 and len(set(report.returns)) == 1:
            text = f"all {len(report.returns)} episodes earned {report.returns[0]:g}"
            report.add("note", "reward", f"{text}: GRPO learns from rewards that differ within a group")

    def _repeat(self, spec: EpisodeSpec, first: list[tuple[str, Transition]]) -> None:
        """Play the first episode's actions again."""
        actions = iter([action for action, _ in first[1:]])
        again = self._play(spec, lambda now: next(actions, None))
        self._report.repeatable = [now.comparable() for _, now in first] == [now.comparable() for _, now in again]
        if first[0][1].observation != again[0][1].observation:
            advice = "take random choices from self.np_random, after super().reset(seed=seed)"
            self._report.add("warning", "reset", f"the same seed gave different first observations: {advice}")
        elif not self._report.repeatable:
            self._report.add("warning", "step", "the same seed and actions gave different answers")


def _transition(event: PoolEvent) -> Transition:
    if event.kind == "reset":
        return Transition(*event.payload)
    observation, reward, terminated, truncated, info = event.payload
    return Transition(observation, {**info, "at_limit": info["reason"] == "step_limit"}, reward, terminated, truncated)


def _rate(seconds: list[float]) -> float | None:
    return len(seconds) / max(sum(seconds), 1e-9) if seconds else None
