"""Environments behind gymnasium's face, and a pool of worker processes that play many episodes at once."""

from lit_rft.envs.java import SimulatorError
from lit_rft.envs.pool import EnvPool, Job, PoolEvent
from lit_rft.envs.scienceworld import ScienceWorldEnv

__all__ = ["EnvPool", "Job", "PoolEvent", "ScienceWorldEnv", "SimulatorError"]
