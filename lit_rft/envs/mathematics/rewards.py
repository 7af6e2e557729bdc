"""Process rewards: a reward for each line of a solution, from a verifier or from a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lit_rft.envs.mathematics.problems import ExpressionProblem, evaluate


class ProcessReward(Protocol):
    """A reward for the latest line of a solution.

    A process reward model reads `problem.text` and the lines; a verifier knows the problem's partial results as well.
    It is copied into the processes of the environments, so it must be picklable.
    """

    def __call__(self, problem: ExpressionProblem, lines: Sequence[str]) -> float:
        """Return the reward of the last of `lines`, in [-1, 1]. The environment scales it, see `Expressions`."""


@dataclass(frozen=True)
class PartialResults:
    """A verifier of partial results: 1 if what is left after the line and each one before it has the problem's value.

    After a wrong line no further one is right: the mistake is in all that is left, or a second one hides it.

    Attributes:
        wrong: reward of the other lines, in [-1, 1).
    """

    wrong: float = -1.0

    def __post_init__(self) -> None:
        if not -1 <= self.wrong < 1:
            raise ValueError(f"wrong must be in [-1, 1), got {self.wrong}")

    def __call__(self, problem: ExpressionProblem, lines: Sequence[str]) -> float:
        right = all(evaluate(problem.after(lines[:number])) == problem.value for number in range(1, len(lines) + 1))
        return 1.0 if right else self.wrong
