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
        fits: whether a text fits; a longer one never does if a shorter one does not.
    """
    if fits(text):
        return text
    lengths = range(len(text))
    first_unfit = bisect.bisect_left(lengths, True, key=lambda length: not fits(_cut(text, length)))
    while first_unfit and not fits(_cut(text, first_unfit - 1)):  # tokens are not quite monotonic
        first_unfit -= 1
    return _cut(text, first_unfit - 1) if first_unfit else None


def _cut(text: str, length: int) -> str:
    return f"{text[:length].rstrip()} {CUT}".lstrip()


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
