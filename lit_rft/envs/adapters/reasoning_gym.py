"""Problems of reasoning-gym as environments of one step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class ReasoningGymEnv(gym.Env[str, str]):
    """A problem of a reasoning-gym task; the action is its answer, rewarded with reasoning-gym's score in [0, 1].

    A seed is a problem. Options of `reset` are settings of the task for this problem, in addition to `settings`.

    Args:
        task: name of the task, such as ``leg_counting``.
        settings: of the task, as in reasoning-gym.

    Raises:
        ImportError: reasoning-gym is not installed (lit-rft[math]).
        ValueError: unknown task; at `reset`, settings that it refuses.
    """

    def __init__(self, task: str, settings: dict[str, Any] | None = None) -> None:
        try:
            import reasoning_gym.factory
        except ImportError as error:
            raise ImportError("this environment needs reasoning-gym: pip install 'lit-rft[math]'") from error
        if task not in reasoning_gym.factory.DATASETS:
            raise ValueError(
                f"unknown task {task!r}; reasoning-gym has {', '.join(sorted(reasoning_gym.factory.DATASETS))}"
            )
        self.task, self.settings = task, dict(settings or {})
        self._create_dataset: Any = reasoning_gym.create_dataset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Generate the problem of a seed, or of a random one."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        settings = {**self.settings, **{name: value for name, value in (options or {}).items() if name != "task"}}
        try:
            self.dataset = self._create_dataset(self.task, size=1, seed=number, **settings)
        except (AssertionError, TypeError) as error:
            raise ValueError(f"reasoning-gym refuses the settings {settings} of {self.task!r}: {error}") from error
        self.entry = self.dataset[0]
        return self.entry["question"], {"env": f"reasoning-gym/{self.task}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Score an answer, which ends the episode."""
        score = float(self.dataset.score_answer(action.strip(), self.entry))
        return "", score, True, False, {"score": score, "success": score >= 1.0}
