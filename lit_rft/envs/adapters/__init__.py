"""Environments of other packages and programs as `gymnasium.Env`s."""

from lit_rft.envs.adapters.http import HttpEnv
from lit_rft.envs.adapters.openenv import OpenEnvEnv
from lit_rft.envs.adapters.reasoning_gym import ReasoningGymEnv
from lit_rft.envs.adapters.textworld import TextWorldEnv, TextWorldSuite

__all__ = ["HttpEnv", "OpenEnvEnv", "ReasoningGymEnv", "TextWorldEnv", "TextWorldSuite"]
