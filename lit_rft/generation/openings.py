"""Openings that conversations share, read once: system prompts, examples, the whole prompt of a group's episodes.

With the same weights, the keys and values of a token depend on the tokens before it alone, so those of an equal opening
can be copied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LEAST = 32  # shared tokens: a further pass over the weights costs about as much as reading so many
_LAST_STEP = 2  # system prompt, game, episode; each step is a further pass


@dataclass(frozen=True)
class Share:
    """The beginning that a conversation copies before it reads the rest of its opening.

    Attributes:
        source: the slot that it copies from; None if it reads all by itself.
        length: tokens to copy.
        step: number of its pass, from 0; later than that of its source.
    """

    source: int | None = None
    length: int = 0
    step: int = 0


def plan_shares(cached: Mapping[int, Sequence[int]], new: Mapping[int, Sequence[int]]) -> dict[int, Share]:
    """Decide what new conversations copy, from those in the cache or from one another.

    In sorted order the longest common opening is that with a neighbour. Longer ones come first, so that what they
    contain is copied from them.

    Args:
        cached: slot -> the first tokens of its conversation, which is in the cache.
        new: slot -> the tokens of a conversation that begins.

    Returns:
        The share of each new slot. At least its last token is left to be read, which gives its logits.
    """
    ids = {**cached, **new}
    order = sorted(ids, key=lambda slot: (list(ids[slot]), slot in cached, -slot), reverse=True)
    following: dict[int, int | None] = {}
    latest: int | None = None
    for slot in reversed(order):
        following[slot] = latest
        latest = slot if slot in cached else latest
    shares: dict[int, Share] = {}
    previous: int | None = None
    for slot in order:
        if slot in new:
            sources = [source for source in (previous, following[slot]) if source is not None]
            options = [_share(source, _common(ids[source], ids[slot][:-1]), shares) for source in sources]
            shares[slot] = max(options, key=lambda share: share.length, default=Share())
        previous = slot
    return shares


def _share(source: int, length: int, shares: Mapping[int, Share]) -> Share:
    """Return a share of a source's first tokens, taken from where it has copied them itself if that is enough."""
    while (copied := shares.get(source, Share())).source is not None and (
        copied.length >= length or copied.step == _LAST_STEP
    ):
        source, length = copied.source, min(copied.length, length)
    if length < _LEAST:
        return Share()
    return Share(source, length, shares[source].step + 1 if source in shares else 0)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of equal tokens at the beginning of two sequences."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
