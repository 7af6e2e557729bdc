"""ScienceWorld (Wang et al., EMNLP 2022, arXiv 2203.07540): its simulator as an environment, its tasks as suites."""

from lit_rft.envs.scienceworld.env import ScienceWorldEnv
from lit_rft.envs.scienceworld.java import SimulatorError
from lit_rft.envs.scienceworld.subgoals import annotate_scienceworld
from lit_rft.envs.scienceworld.suite import ScienceWorldSuite, eto, glider, short_tasks

__all__ = [
    "ScienceWorldEnv",
    "ScienceWorldSuite",
    "SimulatorError",
    "annotate_scienceworld",
    "eto",
    "glider",
    "short_tasks",
]
