"""The columns of a row that hold its prompt, ground truth, traces, and so on: by common names, or by a mapping."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from lit_rft.problems.messages import parse_literal
from lit_rft.problems.record import ProblemError

logger = logging.getLogger(__name__)

# field of a problem -> columns that may hold it; the first one with a value is used
FIELDS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "messages", "conversations", "problem", "question"),
    "ground_truth": (
        "ground_truth",
        "reward_model.ground_truth",
        "answer",
        "final_answer",
        "expected_answer",
        "solution",
    ),
    "traces": ("traces", "target", "completion"),
    "trace_log_probs": ("trace_log_probs",),
    "source": ("source", "data_source"),
    "id": ("id",),
    "repeats": ("repeats",),
}
# columns that are fields of a problem, not passed to reward functions
OWN_COLUMNS = frozenset(
    name.partition(".")[0]
    for names in (*(FIELDS[f] for f in ("traces", "trace_log_probs", "source", "id", "repeats")), ("prompt",))
    for name in names
) | {"ground_truth", "reward_model"}
_NEAR = 0.83  # minimum similarity of a misspelt name


class Columns:
    """Find the fields of problems in the rows of one file, and report the columns in use.

    Args:
        mapping: field -> column, in place of the common names; a dotted name selects a part of an object
            (``reward_model.ground_truth``), null means that no column holds the field.

    Raises:
        ValueError: For an unknown field.
    """

    def __init__(self, mapping: Mapping[str, str | None] | None = None) -> None:
        self.mapping = dict(mapping or {})
        for name in self.mapping:
            if name not in FIELDS:
                raise ValueError(f"columns has {name!r}, expected {', '.join(FIELDS)}{did_you_mean(name, FIELDS)}")
        self._names: dict[str, None] = {}  # columns of all rows, in order
        self._used_columns: dict[str, dict[str, None]] = {name: {} for name in FIELDS}
        self._present: set[str] = set()  # mapped fields whose column is in some row, with or without a value

    def see(self, row: Mapping[str, Any]) -> None:
        """Count a row's columns for `check`."""
        self._names.update(dict.fromkeys(row))

    def find(self, row: Mapping[str, Any], name: str) -> tuple[str, Any]:
        """Return the column of a field in this row, and its value.

        Returns:
            ("", None) without such a column.

        Raises:
            ProblemError: If a dotted name refers to a cell that is not an object.
        """
        first: tuple[str, Any] = ("", None)
        for candidate in self._candidates(name):
            column = candidate if name in self.mapping else _as_spelt(candidate, row)
            present, value = lookup(row, column)
            if not present:
                continue
            self._present.add(name)
            if not is_empty(value):
                self._used_columns[name][column] = None
                return column, value
            first = first if first[0] else (column, value)
        return first

    def _candidates(self, name: str) -> tuple[str, ...]:
        if name not in self.mapping:
            return FIELDS[name]
        column = self.mapping[name]
        return () if column is None else (column,)

    def require(self, row: Mapping[str, Any], name: str) -> tuple[str, Any]:
        """Return column and value of a required field, as `find` does.

        Raises:
            ProblemError: There is no such column; the message lists the row's columns.
        """
        column, value = self.find(row, name)
        if column:
            return column, value
        wanted = self._candidates(name)
        expected = " or ".join([", ".join(wanted[:-1]), wanted[-1]] if len(wanted) > 1 else wanted) or "a column"
        raise ProblemError(
            f"expected {expected}, got a row with {', '.join(row) or 'no column'}; name the column "
            f"that holds it (columns: {{{name}: NAME}}){did_you_mean(wanted, row)}",
            name,
        )

    def extra(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a row for reward functions."""
        return {name: value for name, value in row.items() if name not in OWN_COLUMNS}

    def check(self, path: str) -> None:
        """Check the columns of a file after reading all rows, and log those in use.

        Raises:
            ValueError: If a mapped column is in no row, or no column holds the traces but one has a similar name.
        """
        names = list(self._names)
        for name, column in self.mapping.items():
            if column is not None and name not in self._present:
                raise ValueError(
                    f"{path}: columns.{name} is {column!r}, expected one of the file's columns: {', '.join(names)}"
                    f"{did_you_mean(column, names)}"
                )
        self._check_spelling(path)
        used = {column.partition(".")[0] for columns in self._used_columns.values() for column in columns}
        used_fields = [
            f"{name} from {' and '.join(columns)}" for name, columns in self._used_columns.items() if columns
        ]
        others = [name for name in names if name not in used and name not in OWN_COLUMNS]
        logger.info("%s: %s; other columns, for reward functions only: %s",
                    path, ", ".join(used_fields), ", ".join(others) or "none")  # fmt: skip

    def _check_spelling(self, path: str) -> None:
        """Reject a file if a misspelt column would silently lose an optional field."""
        for field, known in FIELDS.items():
            if self._used_columns[field] or field in self.mapping:
                continue
            for name in self._names:
                near = None if name.lower() in _ALL_NAMES else nearest(name, known)
                if near is not None:
                    raise ValueError(
                        f"{path}: unknown column {name!r}; did you mean {near!r}? Rename it or set columns: "
                        f"{{{field}: {name}}}; if it is something else, columns: {{{field}: null}}"
                    )


_ALL_NAMES = frozenset(name.partition(".")[0] for names in FIELDS.values() for name in names)


def _as_spelt(column: str, row: Mapping[str, Any]) -> str:
    """Return a common name in the row's spelling: `Answer` for `answer`."""
    head, dot, rest = column.partition(".")
    if head in row:
        return column
    return next((name for name in row if name.lower() == head), head) + dot + rest


def is_empty(value: Any) -> bool:
    """Return whether a cell has no value: null, a blank text, or an empty list or object."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def lookup(row: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    """Look up a cell by the name of its column, or a part of one by a dotted name.

    Returns:
        Whether it exists, and its value.

    Raises:
        ProblemError: If the cell is neither an object nor the text of one.
    """
    if column in row:
        return True, row[column]
    head, dot, rest = column.partition(".")
    if not dot or is_empty(row.get(head)):
        return False, None
    return lookup(as_object(row[head], head), rest)


def as_object(value: Any, name: str) -> dict[str, Any]:
    """Return an object, also from its JSON text.

    Raises:
        ProblemError: If it is neither.
    """
    parsed = parse_literal(value) if isinstance(value, str) else value
    if not isinstance(parsed, dict):
        raise ProblemError(f"expected an object or its JSON text, got {value!r:.60} ({type(value).__name__})", name)
    return parsed


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name of which another one is a misspelling, if any."""
    plain = {_plain(candidate): candidate for candidate in known}
    if any(name.lower().startswith(f"{candidate}_") for candidate in plain.values()):  # target_length, prompt_id
        return None
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=_NEAR)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def did_you_mean(wanted: str | Iterable[str], names: Iterable[str]) -> str:
    """Return the end of an error message: a suggestion if a name resembles one of the wanted ones, else nothing."""
    names = list(names)
    for name in [wanted] if isinstance(wanted, str) else wanted:
        near = nearest(name, names)
        if near is not None:
            return f"; did you mean {near!r}?"
    return ""
