"""Conditions that a step has met, for subgoals and intrinsic rewards: facts gained, in words that name types only.

A goal cannot name an instance ("take knife 2") before it has been seen, so texts name the type ("take knife"). Keys
name the instance: taking a second knife is another condition.
"""

from __future__ import annotations

from collections.abc import Set

from lit_rft.envs.alfworld.games import type_of
from lit_rft.episodes.record import Achieved

Fact = tuple[str, ...]

_TEXTS = {
    "holds": "take {0}",
    "inreceptacle": "put {0} in {1}",
    "isclean": "clean {0}",
    "ishot": "heat {0}",
    "iscool": "cool {0}",
    "istoggled": "use {0}",
}


def gained(before: Set[Fact], after: Set[Fact]) -> list[Achieved]:
    """Return the new conditions.

    Args:
        before, after: facts by name, each with the names of its objects (``("holds", "mug 2")``); facts of other kinds
            than those named above are ignored.
    """
    new = sorted(fact for fact in after - before if fact[0] in _TEXTS)
    return [Achieved(":".join(fact), _TEXTS[fact[0]].format(*map(type_of, fact[1:]))) for fact in new]
