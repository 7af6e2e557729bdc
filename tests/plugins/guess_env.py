"""An environment as a user would write it: gymnasium's methods, and nothing of this library."""

from typing import Any

import gymnasium as gym


class Guess(gym.Env[str, str]):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.number = (options or {}).get("number", int(self.np_random.integers(4)))
        return "Guess a number from 0 to 3.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        right = action.strip() == str(self.number)
        return "right" if right else "wrong", 1.0 if right else -0.25, right, False, {}
