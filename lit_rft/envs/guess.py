"""A small example environment: what an environment needs, and nothing more."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class GuessNumber(gym.Env[str, str]):
    """Guess a number; each wrong guess is answered with "higher" or "lower".

    Args:
        highest: the number is in 0..highest.
    """

    def __init__(self, highest: int = 9) -> None:
        self.highest = highest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.number = int(self.np_random.integers(self.highest + 1))
        return f"Guess a number from 0 to {self.highest}. Answer with the number only.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        guess = action.strip()
        if not guess.isdecimal():
            return "That is not a number.", 0.0, False, False, {"valid": False}
        right = int(guess) == self.number
        answer = "right" if right else "higher" if int(guess) < self.number else "lower"
        return answer, float(right), right, False, {}
