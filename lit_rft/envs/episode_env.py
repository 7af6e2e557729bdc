"""Any gymnasium text environment, with the defaults of `StepInfo` filled in."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.contract import EpisodeContract


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
        self._contract = EpisodeContract(type(env.unwrapped).__name__)

    def reset(self, spec: EpisodeSpec) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Raises:
            ValueError: the environment rejects the options.
            ContractError: it returns anything but text and a dictionary with values of the expected types.
        """
        return self._contract.start(self.env.reset(seed=spec.seed, options=spec.options or None), spec.step_limit)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Apply an action. An episode is never both terminated and truncated.

        Raises:
            ContractError: the environment returns anything but the five values of `gymnasium.Env.step` with the
                expected types.
        """
        return self._contract.step(self.env.step(action))

    def close(self) -> None:
        self.env.close()
