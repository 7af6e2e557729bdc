"""ALFWorld (Shridhar et al., ICLR 2021, arXiv 2010.03768): its text games, and generated games of the same kind."""

from lit_rft.envs.alfworld.env import AlfworldEnv
from lit_rft.envs.alfworld.explorer import Explorer, solve
from lit_rft.envs.alfworld.generator import Layout, generate
from lit_rft.envs.alfworld.official import OFFICIAL_GAMES
from lit_rft.envs.alfworld.suite import AlfworldSuite, SyntheticSuite, eto, glider, small_households

__all__ = [
    "OFFICIAL_GAMES",
    "AlfworldEnv",
    "AlfworldSuite",
    "Explorer",
    "Layout",
    "SyntheticSuite",
    "eto",
    "generate",
    "glider",
    "small_households",
    "solve",
]
