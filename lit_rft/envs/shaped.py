"""Other rewards for training than those that an environment gives: a cost of each action, a limit of penalties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from lit_rft.envs.base import EpisodeSpec, Expert, Half, HasExpert, TaskSuite

TASK_SCORE = "task_score"  # the metric with the environment's own score


class ShapedEnv(gym.Wrapper[str, str, str, str]):
    """An environment whose reward of an action is max(r, lowest) - step_cost; see `ShapedSuite`."""

    def __init__(self, env: gym.Env[str, str], step_cost: float, lowest: float | None) -> None:
        super().__init__(env)
        self._step_cost, self._lowest = step_cost, lowest
        self._score, self._added = 0.0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._score, self._added = float(info.get("score", 0.0)), 0.0
        return observation, {**info, "metrics": {**info.get("metrics", {}), TASK_SCORE: self._score}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Apply an action, and shape its reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = float(reward)
        shaped = (reward if self._lowest is None else max(reward, self._lowest)) - self._step_cost
        self._score = float(info.get("score", self._score + reward))
        self._added += shaped - reward
        changed = {
            "score": self._score + self._added,
            "success": bool(info.get("success", terminated and reward > 0)),  # by the environment's own reward
            "metrics": {**info.get("metrics", {}), TASK_SCORE: self._score},
        }
        return observation, shaped, terminated, truncated, {**info, **changed}


@dataclass(frozen=True)
class ShapedSuite:
    """Tasks of another suite with shaped rewards; a `TaskSuite`.

    The reward of an action becomes max(r, lowest) - step_cost, and the score changes by as much. Success stays the
    environment's, and its own score is the metric ``task_score`` of an episode.

    Use it where a policy learns to do nothing: a wrong answer that costs more than the actions up to the step limit
    teaches a policy whose answers are mostly wrong never to answer. A limit of the penalty (`lowest`), or a cost of
    each action that makes doing nothing as expensive (`step_cost`), takes that away. Both can change what is best.

    Attributes:
        suite: any suite.
        step_cost: cost of each action in addition to the environment's, >= 0.
        lowest: lower bound of the environment's reward of an action; null for none.

    Raises:
        ValueError: a number is out of range.
    """

    suite: TaskSuite
    step_cost: float = 0.0
    lowest: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.step_cost < math.inf:
            raise ValueError(f"step_cost must be >= 0 and finite, got {self.step_cost}")
        if self.lowest is not None and not math.isfinite(self.lowest):
            raise ValueError(f"lowest must be a finite number or null, got {self.lowest}")

    @property
    def name(self) -> str:
        """The name of the suite."""
        return self.suite.name

    @property
    def expert(self) -> Expert | None:
        """The expert of the suite, if it has one."""
        return self.suite.expert if isinstance(self.suite, HasExpert) else None

    def make_env(self) -> gym.Env[str, str]:
        """Make an environment."""
        return ShapedEnv(self.suite.make_env(), self.step_cost, self.lowest)

    def episodes(
        self,
        split: str,
        *,
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
        half: Half | None = None,
        seed: int = 0,
    ) -> list[EpisodeSpec]:
        """Return the episodes of the suite; see `TaskSuite.episodes`."""
        return self.suite.episodes(split, tasks=tasks, limit=limit, half=half, seed=seed)
