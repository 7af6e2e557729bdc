"""A reward in a file outside the library: right answers, with a bonus for their form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_rft.rewards import MathReward

_BOX = re.compile(r"\\boxed\{[^{}]+\}")


class FormatReward:
    r"""Reward 1 for a right answer, and a bonus for one in the wanted form.

    Args:
        bonus: for the form.
        pattern: a regular expression that a completion in the wanted form contains; null: `\boxed{...}`.
    """

    def __init__(self, bonus: float = 0.1, pattern: str | None = None) -> None:
        self.bonus = bonus
        self.pattern = _BOX if pattern is None else re.compile(pattern, re.DOTALL)
        self.math = MathReward(num_workers=1)

    def __call__(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Compute a reward in [0, 1 + bonus] for each completion."""
        right = self.math(completions, rows)
        formed = [self.pattern.search(text) is not None for text in completions]
        return [score + self.bonus * form for score, form in zip(right, formed, strict=True)]

    def reward_settings(self) -> dict[str, Any]:
        """The settings that decide about an answer: `predict` does not mix answers of different ones."""
        return {"bonus": self.bonus, "pattern": self.pattern.pattern}

    def close(self) -> None:
        """End the processes that grade."""
        self.math.close()
