"""Text environments: their contract, suites of tasks, and pools of workers for many episodes at once."""

from lit_rft.envs.base import EpisodeSpec, Expert, ExpertPolicy, PolicyExpert, ScriptedExpert, StepInfo, TaskSuite
from lit_rft.envs.checking import EnvReport, check_env
from lit_rft.envs.contract import ContractError
from lit_rft.envs.episode_env import EpisodeEnv
from lit_rft.envs.gym import GymSuite
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_events import PoolEvent
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.envs.pools import EnvPools
from lit_rft.envs.scienceworld import ScienceWorldEnv, ScienceWorldSuite, SimulatorError

__all__ = [
    "ContractError",
    "EnvPool",
    "EnvPools",
    "EnvReport",
    "EpisodeEnv",
    "EpisodeSpec",
    "Expert",
    "ExpertPolicy",
    "GymSuite",
    "PolicyExpert",
    "PoolEvent",
    "PoolSettings",
    "ScienceWorldEnv",
    "ScienceWorldSuite",
    "ScriptedExpert",
    "SimulatorError",
    "StepInfo",
    "TaskSuite",
    "check_env",
]
