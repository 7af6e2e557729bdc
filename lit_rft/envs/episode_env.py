"""Any gymnasium text environment with the defaults of `StepInfo` filled in."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from lit_rft.envs.base import EpisodeSpec
from lit_rft.episodes.record import Achieved


class EpisodeEnv:
    """An environment that plays `EpisodeSpec`s, and whose info has every key of `StepInfo` but `admissible`.

    Args:
        env: a text environment.

    Raises:
        TypeError: it is no `gymnasium.Env`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        if not isinstance(env, gym.Env):
            raise TypeError(f"expected a gymnasium.Env, got {type(env).__name__}: derive it from gymnasium.Env")
        self.env = env
        self._step_limit, self._steps, self._total_reward = 0, 0, 0.0

    def reset(self, spec: EpisodeSpec) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Raises:
            ValueError: the environment refuses the options, or answers with anything but text and a dictionary.
        """
        self._step_limit, self._steps, self._total_reward = spec.step_limit, 0, 0.0
        answer = self.env.reset(seed=spec.seed, options=spec.options or None)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ValueError(f"{self._name}.reset must return (observation, info), got {type(answer).__name__}")
        observation, info = answer
        self._check(observation, info, "reset")
        defaults = {"env": self._name, "env_version": "", "task_description": observation, "score": 0.0, "metrics": {}}
        return observation, {**defaults, **info, "achieved": _achieved(info)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do an action. An episode is never both terminated and truncated.

        Raises:
            ValueError: the environment answers with anything but the five values of `gymnasium.Env.step`.
        """
        answer = self.env.step(action)
        if not isinstance(answer, tuple) or len(answer) != 5:
            got = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
            expected = "(observation, reward, terminated, truncated, info)"
            raise ValueError(f"{self._name}.step must return {expected}, got {got}")
        observation, reward, terminated, truncated, info = answer
        self._check(observation, info, "step")
        if not isinstance(reward, (int, float, numbers.Real)):
            raise ValueError(f"{self._name}.step must return a number as reward, got {type(reward).__name__}")
        self._steps += 1
        reward = float(reward)
        self._total_reward += reward
        terminated = bool(terminated)
        at_limit = 0 < self._step_limit <= self._steps
        truncated = (bool(truncated) or at_limit) and not terminated
        success = bool(info.get("success", terminated and reward > 0))
        reason = None
        if terminated or truncated:
            ended = ("goal" if success else "failed") if terminated else "step_limit" if at_limit else "truncated"
            reason = info.get("reason") or ended
        filled = {
            "metrics": {},
            **info,
            "score": float(info.get("score", self._total_reward)),
            "success": success,
            "valid": bool(info.get("valid", True)),
            "achieved": _achieved(info),
            "reason": reason,
        }
        return observation, reward, terminated, truncated, filled

    def close(self) -> None:
        self.env.close()

    @property
    def _name(self) -> str:
        return type(self.env.unwrapped).__name__

    def _check(self, observation: Any, info: Any, method: str) -> None:
        if not isinstance(observation, str):
            raise ValueError(f"{self._name}.{method} must return text as observation, got {type(observation).__name__}")
        if not isinstance(info, dict):
            raise ValueError(f"{self._name}.{method} must return a dictionary as info, got {type(info).__name__}")


def _achieved(info: Mapping[str, Any]) -> list[Achieved]:
    return [_condition(condition) for condition in info.get("achieved", ())]


def _condition(condition: Any) -> Achieved:
    if isinstance(condition, str):
        return Achieved(condition, condition)
    return Achieved(**condition) if isinstance(condition, Mapping) else condition
