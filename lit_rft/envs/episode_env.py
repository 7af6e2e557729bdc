"""Any gymnasium text environment, with the defaults of `StepInfo` filled in."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from lit_rft._records import show_value
from lit_rft.envs.base import EpisodeSpec
from lit_rft.episodes.record import Achieved


class ContractError(ValueError):
    """A result of an environment that violates the contract (`StepInfo`); playing the episode again would not help."""


class EpisodeEnv:
    """An environment for `EpisodeSpec`s whose info has every key of `StepInfo` except `admissible`.

    Args:
        env: a text environment.

    Raises:
        TypeError: it is not a `gymnasium.Env`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        if not isinstance(env, gym.Env):
            raise TypeError(f"expected a gymnasium.Env, got {type(env).__name__}: derive it from gymnasium.Env")
        self.env = env
        self._step_limit, self._steps, self._total_reward = 0, 0, 0.0
        self._metrics: dict[str, float] = {}

    def reset(self, spec: EpisodeSpec) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Raises:
            ValueError: the environment rejects the options.
            ContractError: it returns anything but text and a dictionary, or numbers that are not finite.
        """
        self._step_limit, self._steps, self._total_reward = spec.step_limit, 0, 0.0
        self._metrics = {}
        answer = self.env.reset(seed=spec.seed, options=spec.options or None)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ContractError(f"{self._name}.reset must return (observation, info), got {type(answer).__name__}")
        observation, info = answer
        self._check(observation, info, "reset")
        defaults = {"env": self._name, "env_version": "", "task_description": observation}
        score = self._number(info.get("score", 0.0), "score", "reset")
        checked = {"score": score, "achieved": _achieved(info), "metrics": self._all_metrics(info, "reset")}
        return observation, {**defaults, **info, **checked}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Apply an action. An episode is never both terminated and truncated.

        Raises:
            ContractError: the environment returns anything but the five values of `gymnasium.Env.step`, or numbers that
                are not finite.
        """
        answer = self.env.step(action)
        if not isinstance(answer, tuple) or len(answer) != 5:
            got = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
            expected = "(observation, reward, terminated, truncated, info)"
            raise ContractError(f"{self._name}.step must return {expected}, got {got}")
        observation, reward, terminated, truncated, info = answer
        self._check(observation, info, "step")
        reward = self._number(reward, "reward", "step")
        self._steps += 1
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
            **info,
            "score": self._number(info.get("score", self._total_reward), "score", "step"),
            "success": success,
            "valid": bool(info.get("valid", True)),
            "achieved": _achieved(info),
            "metrics": self._all_metrics(info, "step"),
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
            got = type(observation).__name__
            raise ContractError(f"{self._name}.{method} must return text as observation, got {got}")
        if not isinstance(info, dict):
            raise ContractError(f"{self._name}.{method} must return a dictionary as info, got {type(info).__name__}")

    def _number(self, value: Any, what: str, method: str) -> float:
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ContractError(
                f"{self._name}.{method} must return a finite number as {what}, got {show_value(value)}; convert arrays "
                "and tensors with float(), and leave out what has no value"
            )
        return float(value)

    def _all_metrics(self, info: Mapping[str, Any], method: str) -> dict[str, float]:
        """Return the last value of every metric that the episode has reported so far."""
        reported = info.get("metrics", {})
        if not isinstance(reported, Mapping) or not all(isinstance(key, str) and key for key in reported):
            got = show_value(reported)
            raise ContractError(f"{self._name}.{method} must return numbers by name in info['metrics'], got {got}")
        for key, value in reported.items():
            self._metrics[key] = self._number(value, f"info['metrics'][{key!r}]", method)
        return dict(self._metrics)


def _achieved(info: Mapping[str, Any]) -> list[Achieved]:
    return [_condition(condition) for condition in info.get("achieved", ())]


def _condition(condition: Any) -> Achieved:
    if isinstance(condition, str):
        return Achieved(condition, condition)
    return Achieved(**condition) if isinstance(condition, Mapping) else condition
