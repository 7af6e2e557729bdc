"""Drafts of the next tokens by look-up in a conversation (prompt look-up; Saxena 2023, github.com/apoorvumang).

Actions copy names from what was observed, so what followed the latest tokens earlier often follows again. A pass reads
a token and its draft, and samples after each of them as long as the samples agree with the draft. Every token is
sampled from the model's own distribution, with the same random number as without drafts: samples are the same, up to
rounding.
"""

from collections.abc import Iterable

_LENGTHS = ((8, 2), (16, 1))  # (rows at most, tokens of a draft); with more rows wider passes cost more than they save


def draft_length(rows: int) -> int:
    """Return the length of the drafts that pays on a CPU for a number of rows (docs/performance.md)."""
    return next((length for most, length in _LENGTHS if rows <= most), 0)


class Lookup:
    """The tokens of a conversation, with an index of what followed each pair of tokens and each token last."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def extend(self, ids: Iterable[int]) -> None:
        """Append tokens."""
        for token in ids:
            place = len(self._ids)
            for length in (1, 2) if place > 1 else (1,) * place:
                self._after[tuple(self._ids[place - length :])] = place
            self._ids.append(token)

    def draft(self, length: int) -> list[int]:
        """Return up to `length` tokens: those after the last earlier occurrence of the latest two, else latest one."""
        for latest in (2, 1):
            place = self._after.get(tuple(self._ids[-latest:]))
            if place is not None:
                return self._ids[place : place + length]
        return []
