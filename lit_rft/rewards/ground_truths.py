"""Verify the ground truths of a data set against themselves, to report before training those that no answer matches."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from lit_rft.rewards.base import RewardSum
from lit_rft.rewards.math import MathReward
from lit_rft.rewards.pool import Verdict

logger = logging.getLogger(__name__)

_CHUNK = 512
_PROGRESS_SECONDS = 10.0
_SHOWN = 20  # in the log


class WithGroundTruth(Protocol):
    """An item with a ground truth (`problems.Problem` is one); its `origin` (file and row) is used if there is one."""

    @property
    def id(self) -> str: ...
    @property
    def ground_truth(self) -> str: ...


class Unearnable(NamedTuple):
    """A ground truth that no answer matches.

    Attributes:
        id: of the problem.
        origin: its file and row, or an empty text.
        ground_truth: as written in the data.
        reason: why no answer matches.
    """

    id: str
    origin: str
    ground_truth: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin or f'problem {self.id}'}: {self.ground_truth[:80]!r}: {self.reason}"


def unearnable(problems: Sequence[WithGroundTruth], reward: Any) -> list[Unearnable]:
    """Find ground truths that are graded wrong when given back in a box, or match only word for word.

    Args:
        problems: of a data set; repeated ground truths are verified once.
        reward: a `MathReward`, or a `RewardSum` with one; other functions have their own rules, and nothing is
            verified.

    Returns:
        One entry per problem, in order.
    """
    grader = _math_reward(reward)
    if grader is None:
        return []
    golds = list(dict.fromkeys(problem.ground_truth for problem in problems))
    reasons: dict[str, str] = {}
    next_report = time.monotonic() + _PROGRESS_SECONDS
    for start in range(0, len(golds), _CHUNK):
        chunk = golds[start : start + _CHUNK]
        reasons |= _reasons(chunk, grader)
        if time.monotonic() >= next_report:
            logger.info("%d of %d ground truths verified", start + len(chunk), len(golds))
            next_report = time.monotonic() + _PROGRESS_SECONDS
    return [
        Unearnable(problem.id, getattr(problem, "origin", ""), problem.ground_truth, reasons[problem.ground_truth])
        for problem in problems
        if problem.ground_truth in reasons
    ]


def warn_of_unearnable(problems: Sequence[WithGroundTruth], reward: Any) -> list[Unearnable]:
    """Log a warning that lists the ground truths found by `unearnable`, and return them."""
    entries = unearnable(problems, reward)
    if entries:
        lines = [f"\n  {entry}" for entry in entries[:_SHOWN]]
        more = f"\n  and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
        logger.warning(
            "%d of %d ground truths match no answer, or none that differs in form: correct them in the data:%s%s",
            len(entries), len(problems), "".join(lines), more,
        )  # fmt: skip
    return entries


def _math_reward(reward: Any) -> MathReward | None:
    if isinstance(reward, RewardSum):
        return next((reward_part for part in reward.functions if (reward_part := _math_reward(part)) is not None), None)
    return reward if isinstance(reward, MathReward) else None


def _reasons(golds: list[str], grader: MathReward) -> dict[str, str]:
    pool = grader.pool()
    reasons = {}
    boxed = pool.verify(golds, [rf"\boxed{{{gold}}}" for gold in golds])
    for gold, verdict, kind in zip(golds, boxed, pool.kinds(golds), strict=True):
        if verdict is not Verdict.RIGHT:
            reasons[gold] = f"given back in a box, it is {verdict.value}"
        elif kind is None:
            reasons[gold] = "neither choice, words, number nor mathematics: only the same text is right"
    return reasons
