"""An environment that rewards nearly every action of a random policy: by its share of vowels, over two turns."""

from typing import Any

import gymnasium as gym


class Vowels(gym.Env[str, str]):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        return "Sing.", {"task_description": "Sing vowels."}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        reward = sum(letter in "aeiou" for letter in action) / max(len(action), 1)
        return f"Turn {self.turn}.", reward, self.turn == 2, False, {}
