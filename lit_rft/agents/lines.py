"""Texts of one line: the form of actions and subgoals in utterances."""

import json


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
