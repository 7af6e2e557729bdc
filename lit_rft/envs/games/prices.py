"""A task of two steps with a tool: look up a price, then answer with it."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

_ITEMS = ("lamp", "chair", "table", "clock", "mirror", "carpet", "vase", "shelf")
_LOWEST, _HIGHEST = 10, 99


class PriceLookup(gym.Env[str, str]):
    """Answer with the price of an item. Prices are new in each episode: without the tool they can only be guessed.

    The right answer has reward 1, and an answer ends the episode; each other action costs `tool_cost`.

    Args:
        tool_cost: cost of a tool call, >= 0; also of an action that is neither a call nor an answer.

    Raises:
        ValueError: the cost is negative; at `reset`, for an unknown item as option `item`.
    """

    observation_space = action_space = gym.spaces.Text(500, min_length=0, charset=string.printable)

    def __init__(self, tool_cost: float = 0.1) -> None:
        if tool_cost < 0:
            raise ValueError(f"tool_cost must be >= 0, got {tool_cost}")
        self.tool_cost = tool_cost

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Make a price list and choose an item, or use the option `item`."""
        super().reset(seed=seed)
        prices = self.np_random.integers(_LOWEST, _HIGHEST + 1, size=len(_ITEMS))
        self.prices = {item: int(price) for item, price in zip(_ITEMS, prices, strict=True)}
        self.item = (options or {}).get("item", _ITEMS[int(self.np_random.integers(len(_ITEMS)))])
        if self.item not in self.prices:
            raise ValueError(f"item must be one of {', '.join(_ITEMS)}, got {self.item!r}")
        self.score = 0.0
        task = 'Look the price up with "price ITEM". Then give it with "answer NUMBER".'
        return f"What does the {self.item} cost?", {**self._info(), "task_description": task}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Call the tool, or answer."""
        words = action.lower().split()
        if len(words) == 2 and words[0] == "answer" and re.fullmatch("[0-9]{1,9}", words[1]):
            right = int(words[1]) == self.prices[self.item]
            self.score += float(right)
            return "Right." if right else "Wrong.", float(right), True, False, self._info()
        self.score -= self.tool_cost
        if len(words) == 2 and words[0] == "price" and words[1] in self.prices:
            text = f"The {words[1]} costs {self.prices[words[1]]}."
            return text, -self.tool_cost, False, False, self._info()
        text = f'Expected "price ITEM" or "answer NUMBER". What does the {self.item} cost?'
        return text, -self.tool_cost, False, False, {**self._info(), "valid": False}

    def _info(self) -> dict[str, Any]:
        answers = [f"answer {price}" for price in range(_LOWEST, _HIGHEST + 1)]
        return {"score": self.score, "admissible": [f"price {item}" for item in self.prices] + answers}


def expert(observation: str, info: Mapping[str, Any]) -> str:
    """Call the tool for the requested item, then answer with its price."""
    if match := re.search(r"costs (\d+)", observation):
        return f"answer {match.group(1)}"
    return "price " + re.findall(r"the (\w+) cost\?", observation)[-1]


def optimal_return(tool_cost: float = 0.1) -> float:
    """Return the best expected return: one call and the right answer, or a guess if calls cost more than they gain."""
    return max(1.0 - tool_cost, 1 / (_HIGHEST - _LOWEST + 1))
