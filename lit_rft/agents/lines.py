"""Texts of one line: how actions and subgoals are written as utterances, and read back."""

import json


def write_single_line(text: str) -> str:
    """Write an action or a subgoal as one line; `parse_single_line` gives it back.

    Nearly every text is its own line. What would not come back (an empty text, line breaks, outer blanks, and what is
    a JSON string itself) is written as a JSON string.
    """
    if len(text.splitlines()) == 1 and text == text.strip() and _quoted(text) is None:
        return text
    line = json.dumps(text, ensure_ascii=False)
    return line if len(line.splitlines()) == 1 else json.dumps(text)  # Unicode's line breaks are escaped here only


def parse_single_line(text: str) -> tuple[str, bool]:
    """Read an action or a subgoal.

    Returns: the first line, or the text that it has as a JSON string; and whether there was anything but one line.
    """
    lines = lines_of(text)
    return (read_line(lines[0]) if lines else ""), len(lines) != 1


def lines_of(text: str) -> list[str]:
    """Return the lines of a text that hold more than whitespace, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_line(line: str) -> str:
    """Return a line, or the text that it has as a JSON string."""
    quoted = _quoted(line)
    return line if quoted is None else quoted


def _quoted(line: str) -> str | None:
    """The text that a line has as a JSON string; None if it is none."""
    if not (len(line) >= 2 and line[0] == line[-1] == '"'):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
