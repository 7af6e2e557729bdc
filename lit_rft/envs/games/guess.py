"""A number game: find a number by bisection."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

import gymnasium as gym


class GuessNumber(gym.Env[str, str]):
    """Guess a number with few guesses; each wrong one is answered with the remaining range.

    The right guess has reward 1. The episode ends after it, or after the last guess.

    Args:
        highest: the number is in 0..highest, > 0.
        guesses: maximum number of guesses, > 0; invalid ones count.

    Raises:
        ValueError: a number is out of range; at `reset`, for the option `number`.
    """

    observation_space = action_space = gym.spaces.Text(200, min_length=0, charset=string.printable)

    def __init__(self, highest: int = 9, guesses: int = 3) -> None:
        if highest < 1 or guesses < 1:
            raise ValueError(f"highest and guesses must be at least 1, got {highest} and {guesses}")
        self.highest, self.guesses = highest, guesses

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Choose a number, or use the option `number`."""
        super().reset(seed=seed)
        self.number = int((options or {}).get("number", self.np_random.integers(self.highest + 1)))
        if not 0 <= self.number <= self.highest:
            raise ValueError(f"number must be in 0..{self.highest}, got {self.number}")
        self.low, self.high, self.left = 0, self.highest, self.guesses
        task = f"Guess a number in {self.guesses} guesses. Answer with a number only."
        return self._observation(), {**self._info(0.0), "task_description": task}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Compare a guess with the number."""
        guess = action.strip()
        self.left -= 1
        if not re.fullmatch("[0-9]{1,9}", guess):
            text = f"That is not a number. {self._observation()}"
            return text, 0.0, self.left == 0, False, {**self._info(0.0), "valid": False}
        if int(guess) == self.number:
            return "Right.", 1.0, True, False, self._info(1.0)
        if int(guess) < self.number:
            self.low = max(self.low, int(guess) + 1)
        else:
            self.high = min(self.high, int(guess) - 1)
        return f"Wrong. {self._observation()}", 0.0, self.left == 0, False, self._info(0.0)

    def _observation(self) -> str:
        return f"The number is in {self.low}..{self.high}."

    def _info(self, score: float) -> dict[str, Any]:
        return {"score": score, "admissible": [str(number) for number in range(self.highest + 1)]}


def expert(observation: str, info: Mapping[str, Any]) -> str:
    """Return the middle of the remaining range: an optimal guess."""
    low, high = map(int, re.findall(r"(\d+)\.\.(\d+)", observation)[-1])
    return str((low + high) // 2)


def optimal_return(highest: int = 9, guesses: int = 3) -> float:
    """Return the best expected return over uniformly chosen numbers: k guesses distinguish 2^k - 1 numbers."""
    return min(1.0, (2**guesses - 1) / (highest + 1))
