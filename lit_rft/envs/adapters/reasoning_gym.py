"""Problems of reasoning-gym as environments of one step."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from typing import Any

import gymnasium as gym

logger = logging.getLogger(__name__)
_EVALUATES = re.compile(r"\b(eval|exec|parse_expr|sympify|compile)\(")


class ReasoningGymEnv(gym.Env[str, str]):
    """A problem of a reasoning-gym task; the action is its answer, rewarded with reasoning-gym's score in [0, 1].

    A seed is a problem. Options of `reset` are settings of the task for this problem, in addition to `settings`.

    Args:
        task: name of the task, such as ``leg_counting``.
        settings: of the task, as in reasoning-gym.
        evaluate_answers: permit tasks whose scorer evaluates the answer as Python (`n_queens`, `countdown` and others):
            a model's text then runs with your rights.

    Raises:
        ImportError: reasoning-gym is not installed (lit-rft[math]).
        ValueError: unknown task, or one whose scorer evaluates answers; at `reset`, settings that it refuses.
    """

    def __init__(self, task: str, settings: dict[str, Any] | None = None, evaluate_answers: bool = False) -> None:
        try:
            import reasoning_gym.factory
        except ImportError as error:
            raise ImportError("this environment needs reasoning-gym: pip install 'lit-rft[math]'") from error
        if task not in reasoning_gym.factory.DATASETS:
            raise ValueError(
                f"unknown task {task!r}; reasoning-gym has {', '.join(sorted(reasoning_gym.factory.DATASETS))}"
            )
        if not evaluate_answers and evaluates_answers(reasoning_gym.factory.DATASETS[task][0]):
            raise ValueError(
                f"the scorer of {task!r} evaluates answers as Python: a model's text would run on this machine. Use "
                "another task, or set evaluate_answers in a sandbox of your own"
            )
        self.task, self.settings = task, dict(settings or {})
        self._create_dataset: Any = reasoning_gym.create_dataset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Generate the problem of a seed, or of a random one."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        row = {name: value for name, value in (options or {}).items() if name not in ("task", "seed")}
        settings = {**self.settings, **row}
        try:
            self.dataset = self._create_dataset(self.task, size=1, seed=number, **settings)
        except (AssertionError, TypeError) as error:
            raise ValueError(f"reasoning-gym refuses the settings {settings} of {self.task!r}: {error}") from error
        self.entry = self.dataset[0]
        return self.entry["question"], {"env": f"reasoning-gym/{self.task}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Score an answer, which ends the episode; one that the task's scorer cannot read has the score 0."""
        try:
            score = float(self.dataset.score_answer(action.strip(), self.entry))
        except Exception:  # malformed answers raise errors of any kind in some scorers
            logger.debug("the scorer of %s cannot read an answer", self.task, exc_info=True)
            score = 0.0
        return "", score, True, False, {"score": score, "success": score >= 1.0}


def evaluates_answers(dataset: type) -> bool:
    """Return whether the scorer of a task evaluates answers, by the source of its modules."""
    modules = {cls.__module__ for cls in dataset.__mro__ if "score_answer" in vars(cls)}
    return any(_EVALUATES.search(inspect.getsource(sys.modules[name])) for name in modules)
