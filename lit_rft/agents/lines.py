"""Texts of one line, the form of actions and subgoals in utterances; and texts that are cut to fit."""

import bisect
import json
from collections.abc import Callable

CUT = "[...]"  # where text was left out


def write_single_line(text: str) -> str:
    """Write an action or a subgoal as one line; `parse_single_line` is the inverse.

    Most texts are unchanged. Others (an empty text, line breaks, outer blanks, JSON strings) are written as a JSON
    string.
    """
    if len(text.splitlines()) == 1 and text == text.strip() and _quoted(text) is None:
        return text
    line = json.dumps(text, ensure_ascii=False)
    return line if len(line.splitlines()) == 1 else json.dumps(text)  # escapes Unicode's line breaks


def parse_single_line(text: str) -> tuple[str, bool]:
    """Parse an action or a subgoal.

    Returns:
        The first line, or the text that it encodes as a JSON string; and whether there was anything but one line.
    """
    lines = lines_of(text)
    return (read_line(lines[0]) if lines else ""), len(lines) != 1


def lines_of(text: str) -> list[str]:
    """Return the non-blank lines of a text, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_line(line: str) -> str:
    """Return a line, or the text that it encodes as a JSON string."""
    quoted = _quoted(line)
    return line if quoted is None else quoted


def shortened(text: str, fits: Callable[[str], bool]) -> str | None:
    """Return a text, or as much of its beginning as fits, with a mark of the cut; None if not even the mark fits.

    Args:
        text: any.
        fits: whether a text fits.
    """
    length = longest_fitting(len(text), lambda length: fits(cut_at(text, length)))
    return None if length is None else cut_at(text, length)


def cut_at(text: str, length: int) -> str:
    """Return the first characters of a text with a mark of the cut; the text itself if it has no more."""
    return text if len(text) <= length else f"{text[:length].rstrip()} {CUT}".lstrip()


def longest_fitting(longest: int, fits: Callable[[int], bool]) -> int | None:
    """Return the largest length that fits, at most `longest`; None if not even 0 does."""
    if fits(longest):
        return longest
    length = bisect.bisect_left(range(longest), True, key=lambda length: not fits(length)) - 1
    while length >= 0 and not fits(length):  # a longer text may have fewer tokens
        length -= 1
    return length if length >= 0 else None


def _quoted(line: str) -> str | None:
    """Return the text that a line encodes as a JSON string; None if it is not one, or no file could hold it."""
    if not (len(line) >= 2 and line[0] == line[-1] == '"'):
        return None
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be encoded
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None
