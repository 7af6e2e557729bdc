"""Small text games with a known optimum, for examples, tests and first runs, without download or Java.

Each module has the game, `optimal_return` (the best expected return) and `expert`, which chooses the next action of an
optimal policy from the latest observation and info.
"""

from lit_rft.envs.games.errands import Errands
from lit_rft.envs.games.guess import GuessNumber
from lit_rft.envs.games.prices import PriceLookup
from lit_rft.envs.games.rooms import KeyRooms

__all__ = ["Errands", "GuessNumber", "KeyRooms", "PriceLookup"]
