"""An expression as an episode: one line of its computation per action."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from lit_rft.envs.mathematics.problems import (
    ExpressionProblem,
    Line,
    evaluate,
    generate_problem,
    next_line,
    parts_of,
    read_line,
    rewrite,
)
from lit_rft.envs.mathematics.rewards import PartialResults, ProcessReward

_NEAR = 2  # distance of wrong results among the admissible lines
_LARGEST = 10**6  # absolute value of results


class Expressions(gym.Env[str, str]):
    """Compute an expression in lines such as ``3 + 4 = 7``, each of which replaces a part by its result.

    ``( 3 + 4 ) * 2`` becomes ``7 * 2``, and the last line ends the episode. The solver must choose a part that may be
    computed now, and compute it. Neither is checked: the result is taken, right or wrong, and observations show what is
    left. A line for a part that is not there is invalid and changes nothing.

    The reward of a line is that of `process_reward` times `process_weight` / (steps of the solution), where an invalid
    line counts as -1; a right final answer adds 1 - `process_weight`. The best return is 1 with the default process
    reward. The score is 1 for a right final answer, else 0: no process reward changes it.

    The info has `achieved`, "compute 3 + 4" if that result is right, and the metric `right_steps`, the share of the
    steps up to the first mistake.

    Args:
        steps: numbers of steps of the solutions, of which each episode has one.
        highest: see `generate_problem`.
        process_reward: reward of each line; null for `PartialResults`.
        process_weight: share of the return for the lines, in [0, 1]; the rest is for the final answer.

    Raises:
        ValueError: a number is out of range; at `reset`, for the options `steps` and `split`; at `step`, if the process
            reward is out of range.
    """

    observation_space = action_space = gym.spaces.Text(500, min_length=0, charset=string.printable)

    def __init__(
        self,
        steps: Sequence[int] = (2, 3),
        highest: int = 9,
        process_reward: ProcessReward | None = None,
        process_weight: float = 0.5,
    ) -> None:
        if not steps or not 0 <= process_weight <= 1:
            raise ValueError(f"expected steps and a process_weight in [0, 1], got {steps} and {process_weight}")
        self.steps, self.highest = tuple(steps), highest
        self.process_reward = process_reward or PartialResults()
        self.process_weight = process_weight

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Generate a problem; options: its number of `steps`, and its `split`, see `generate_problem`."""
        super().reset(seed=seed)
        options = options or {}
        steps = options.get("steps", self.steps[int(self.np_random.integers(len(self.steps)))])
        self.problem: ExpressionProblem = generate_problem(
            self.np_random, steps, highest=self.highest, split=options.get("split")
        )
        self.expression, self.right_steps = self.problem.text, 0
        self.lines: list[str] = []
        return self.expression, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take a line."""
        line = read_line(action)
        rewritten = None if line is None or abs(line.result) >= _LARGEST else rewrite(self.expression, line)
        if line is None or rewritten is None:
            text = f"There is no such part. {self.expression}"
            return text, self._scaled(-1.0), False, False, {**self._info(), "valid": False}
        self.lines.append(line.text)
        self.expression = rewritten
        reward = self._scaled(self.process_reward(self.problem, tuple(self.lines)))
        done = not parts_of(rewritten)
        right = self._is_right()
        self.right_steps += right and self.right_steps == len(self.lines) - 1
        reward += (1.0 - self.process_weight) * (done and right)
        achieved = [{"key": line.part, "text": goal_of(line)}] if line.is_right else []
        info = {**self._info(), "achieved": achieved, "success": done and right}
        return self.expression, reward, done, False, info

    def _is_right(self) -> bool:
        """Return whether what is left has the problem's value."""
        return evaluate(self.expression) == self.problem.value

    def _scaled(self, reward: float) -> float:
        if not (math.isfinite(reward) and -1 <= reward <= 1):
            name = type(self.process_reward).__name__
            raise ValueError(f"{name} must return a number in [-1, 1], got {reward!r}")
        return float(reward) * self.process_weight / self.problem.steps

    def _info(self) -> dict[str, Any]:
        parts = parts_of(self.expression)
        results = [line._replace(result=line.result + off) for line in parts for off in range(-_NEAR, _NEAR + 1)]
        return {
            "score": float(not parts and self._is_right()),
            "admissible": list(dict.fromkeys(line.text for line in results)),
            "metrics": {"right_steps": self.right_steps / self.problem.steps},
        }


def goal_of(line: Line) -> str:
    """Return the subgoal of a line."""
    return f"compute {line.part}"


def expert(observation: str, info: Mapping[str, Any]) -> str:
    """Return the line of the first part that may be computed now: an optimal policy."""
    line = next_line(observation.rpartition(". ")[2])
    assert line is not None, "an episode ends when there is no part left"
    return line.text
