"""The contract of environments: results are checked, and the defaults of `StepInfo` are filled in."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from lit_rft._records import show_value
from lit_rft.envs.info_keys import RESET_ONLY, expected_type, is_finite, is_flag
from lit_rft.episodes.record import Achieved


class ContractError(ValueError):
    """A result of an environment that violates the contract (`StepInfo`); playing the episode again would not help."""


class EpisodeContract:
    """Checks and completes the results of one episode after another.

    Args:
        name: of the environment's class, for errors and as the default of ``env``.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._step_limit, self._steps, self._total_reward = 0, 0, 0.0
        self._metrics: dict[str, float] = {}

    def start(self, result: Any, step_limit: int = 0) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            result: of the environment's `reset`.
            step_limit: maximum number of steps; 0 for none.

        Returns:
            Observation and info with every key of `StepInfo` for `reset`, except `admissible`.

        Raises:
            ContractError: it is not text and a dictionary with values of the expected types.
        """
        self._step_limit, self._steps, self._total_reward = step_limit, 0, 0.0
        self._metrics = {}
        if not isinstance(result, tuple) or len(result) != 2:
            raise ContractError(f"{self._name}.reset must return (observation, info), got {type(result).__name__}")
        observation, info = result
        self._check(observation, info, "reset")
        defaults = {"env": self._name, "env_version": "", "task_description": observation}
        score = float(info.get("score", 0.0))
        return observation, {**defaults, **info, "score": score, **self._lists(info)}

    def step(self, result: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take the result of the environment's `step`. An episode is never both terminated and truncated.

        Raises:
            ContractError: it is not the five values of `gymnasium.Env.step` with the expected types.
        """
        if not isinstance(result, tuple) or len(result) != 5:
            got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            expected = "(observation, reward, terminated, truncated, info)"
            raise ContractError(f"{self._name}.step must return {expected}, got {got}")
        observation, reward, terminated, truncated, info = result
        self._check(observation, info, "step")
        reward = self._number(reward, "reward", "step")
        self._steps += 1
        self._total_reward += reward
        terminated, truncated = self._flag(terminated, "terminated"), self._flag(truncated, "truncated")
        at_limit = 0 < self._step_limit <= self._steps
        truncated = (truncated or at_limit) and not terminated
        success = bool(info.get("success", terminated and reward > 0))
        reason = None
        if terminated or truncated:
            ended = ("goal" if success else "failed") if terminated else "step_limit" if at_limit else "truncated"
            reason = info.get("reason") or ended
        completed = {
            **info,
            "score": float(info.get("score", self._total_reward)),
            "success": success,
            "valid": bool(info.get("valid", True)),
            "reason": reason,
            **self._lists(info),
        }
        return observation, reward, terminated, truncated, completed

    def _check(self, observation: Any, info: Any, method: str) -> None:
        """Check the types of the observation and of all keys of the info that `method` reads."""
        if not isinstance(observation, str):
            got = type(observation).__name__
            raise ContractError(f"{self._name}.{method} must return text as observation, got {got}")
        try:
            observation.encode()
        except UnicodeEncodeError as error:
            raise ContractError(f"{self._name}.{method} must return text that UTF-8 can encode: {error}") from None
        if not isinstance(info, dict):
            raise ContractError(f"{self._name}.{method} must return a dictionary as info, got {type(info).__name__}")
        for key, value in info.items():
            is_read = method == "reset" or key not in RESET_ONLY
            if is_read and key != "metrics" and (expected := expected_type(key, value)):
                raise self._error(expected, f"info[{key!r}]", value, method)
        self._update_metrics(info.get("metrics", {}), method)

    def _update_metrics(self, reported: Any, method: str) -> None:
        """Take the latest value of each metric."""
        if not isinstance(reported, Mapping) or not all(isinstance(key, str) and key for key in reported):
            raise self._error("numbers by name", "info['metrics']", reported, method)
        for key, value in reported.items():
            self._metrics[key] = self._number(value, f"info['metrics'][{key!r}]", method)

    def _lists(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """Return the lists and metrics of an info in their final form."""
        lists: dict[str, Any] = {"achieved": [_condition(condition) for condition in info.get("achieved", ())]}
        if "admissible" in info:
            lists["admissible"] = list(info["admissible"])
        return {**lists, "metrics": dict(self._metrics)}

    def _number(self, value: Any, what: str, method: str) -> float:
        if not is_finite(value):
            raise self._error("a finite number", what, value, method)
        return float(value)

    def _flag(self, value: Any, what: str) -> bool:
        if not (is_flag(value) or (isinstance(value, numbers.Integral) and value in (0, 1))):
            raise self._error("True or False", what, value, "step")
        return bool(value)

    def _error(self, expected: str, what: str, value: Any, method: str) -> ContractError:
        return ContractError(
            f"{self._name}.{method} must return {expected} as {what}, got {show_value(value)}; convert arrays and "
            "tensors to plain Python values, and leave out keys that have no value"
        )


def _condition(condition: Any) -> Achieved:
    if isinstance(condition, str):
        return Achieved(condition, condition)
    return Achieved(**condition) if isinstance(condition, Mapping) else condition
