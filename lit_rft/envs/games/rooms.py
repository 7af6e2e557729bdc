"""A grid of rooms: walk to a key, take it, walk to a door and open it."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

Room = tuple[int, int]  # columns to the east, rows to the south

_MOVES: dict[str, Room] = {"north": (0, -1), "south": (0, 1), "east": (1, 0), "west": (-1, 0)}
_ACTIONS = [*_MOVES, "take", "open"]


class KeyRooms(gym.Env[str, str]):
    """Fetch a key and open a door with it, in a square grid of rooms.

    Taking the key and opening the door have reward 0.5 each; every action costs `step_cost`, also without effect. An
    episode ends when the door is open; the environment has no step limit.

    Args:
        size: rooms per side, > 1.
        step_cost: cost of an action, >= 0.

    Raises:
        ValueError: a number is out of range.
    """

    observation_space = action_space = gym.spaces.Text(200, min_length=0, charset=string.printable)

    def __init__(self, size: int = 3, step_cost: float = 0.02) -> None:
        if size < 2 or step_cost < 0:
            raise ValueError(f"expected size > 1 and step_cost >= 0, got {size} and {step_cost}")
        self.size, self.step_cost = size, step_cost

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Place the agent, the key and the door in three different rooms."""
        super().reset(seed=seed)
        places = self.np_random.choice(self.size**2, size=3, replace=False)
        self.position, self.key, self.door = ((int(p) % self.size, int(p) // self.size) for p in places)
        self.has_key, self.score = False, 0.0
        task = f"Fetch the key, then open the door. Answer with one word: {', '.join(_ACTIONS[:-1])} or open."
        return self._observation(), {**self._info(), "task_description": task}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Move, take the key or open the door."""
        word = action.strip().lower()
        possible, achieved = word in self._possible(), ""
        if possible and word in _MOVES:
            east, south = _MOVES[word]
            self.position = (self.position[0] + east, self.position[1] + south)
        elif possible:
            achieved = "take the key" if word == "take" else "open the door"
            self.has_key = True
        reward = 0.5 * bool(achieved) - self.step_cost
        self.score += reward
        done = achieved == "open the door"
        text = "The door is open." if done else self._observation()
        info = {**self._info(), "valid": possible, "achieved": [achieved] if achieved else []}
        return text if possible else f"That is not possible. {text}", reward, done, False, info

    def _possible(self) -> list[str]:
        """Return the actions that have an effect."""
        column, row = self.position
        inside = {"north": row > 0, "south": row < self.size - 1, "east": column < self.size - 1, "west": column > 0}
        moves = [name for name in _MOVES if inside[name]]
        take = ["take"] if not self.has_key and self.position == self.key else []
        return moves + take + (["open"] if self.has_key and self.position == self.door else [])

    def _observation(self) -> str:
        name, place = ("door", self.door) if self.has_key else ("key", self.key)
        east, south = place[0] - self.position[0], place[1] - self.position[1]
        ways = [way for way, far in (("north", -south), ("south", south), ("east", east), ("west", -east)) if far > 0]
        owned = "You have the key" if self.has_key else "You have no key"
        return f"{owned}. The {name} is {'to the ' + ' and '.join(ways) if ways else 'here'}."

    def _info(self) -> dict[str, Any]:
        return {"score": self.score, "admissible": self._possible()}


def expert(observation: str, info: Mapping[str, Any]) -> str:
    """Return the next action on a shortest path."""
    ways = re.findall(r"\b(north|south|east|west)\b", observation)
    if ways:
        return str(ways[0])
    return "open" if "The door is here" in observation else "take"


def optimal_return(size: int = 3, step_cost: float = 0.02) -> float:
    """Return the best expected return over all placements, if the step limit permits the path.

    The path has a step per row and column up to the key, one to take it, and as much again for the door: at most
    4 size - 2 steps.
    """
    rooms: list[Room] = [(column, row) for column in range(size) for row in range(size)]
    lengths = [
        _distance(start, key) + _distance(key, door) + 2 for start, key, door in itertools.permutations(rooms, 3)
    ]
    return 1.0 - step_cost * sum(lengths) / len(lengths)


def _distance(a: Room, b: Room) -> int:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])
