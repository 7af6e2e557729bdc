"""DAPO's soft penalty of overlong completions (Yu et al. 2025, arXiv 2503.14476, eq. 13)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lit_rft.rollouts import GroupAdvantages, Rollout


def overlong_penalty(length: int, *, max_length: int, buffer: int) -> float:
    r"""Compute the length's part of the reward: 0 up to the buffer, then falling linearly to -1.

        0                                     |y| <= max_length - buffer
        (max_length - buffer - |y|) / buffer  up to max_length
        -1                                    beyond

    Args:
        length: |y|, tokens.
        max_length: tokens, >= 1.
        buffer: tokens, in [1, max_length].
    """
    return -min(max(length - (max_length - buffer), 0) / buffer, 1.0)


class OverlongPenalty:
    """Any advantages, with `overlong_penalty` added to the rewards of on-policy rollouts.

    Traces get none, and the reported rewards do not include it.

    Args:
        max_length: tokens of a rollout with the full penalty, for example `sampling.max_new_tokens`.
        buffer: number of tokens before it in which the penalty grows.
        penalty: at the maximum length, >= 0.
        advantages: any `lit_rft.rollouts.Advantages`; default `GroupAdvantages`.

    Raises:
        ValueError: a length or penalty is out of its range.
    """

    def __init__(
        self, max_length: int, buffer: int, penalty: float = 1.0, advantages: Callable[..., Any] | None = None
    ) -> None:
        if not 1 <= buffer <= max_length:
            raise ValueError(f"buffer must be in [1, max_length={max_length}], got {buffer}")
        if not penalty >= 0:
            raise ValueError(f"penalty must be >= 0, got {penalty}")
        self.max_length, self.buffer, self.penalty = max_length, buffer, penalty
        self.advantages = advantages if advantages is not None else GroupAdvantages()

    def __call__(self, rollouts: Sequence[Rollout]) -> Tensor:
        return self.advantages([dataclasses.replace(r, reward=r.reward + self._shaping(r)) for r in rollouts])

    def _shaping(self, rollout: Rollout) -> float:
        if rollout.off_policy:
            return 0.0
        return self.penalty * overlong_penalty(rollout.length, max_length=self.max_length, buffer=self.buffer)
