"""Errors of invalid records, with the place of the error."""

from __future__ import annotations

from typing import Any


class RecordError(ValueError):
    """Invalid record: violates its schema.

    Attributes:
        message: expected and actual value.
        field: path of the field, for example ``steps[3].reward``; empty for the record as a whole.
        path: file of the record; empty for records in memory.
        line: line (JSON lines) or row (Parquet) in that file, counted from 1; None if unknown.
    """

    def __init__(self, message: str, field: str = "", path: str = "", line: int | None = None) -> None:
        super().__init__(message, field, path, line)  # all of them in args: the error survives pickling
        self.message, self.field, self.path, self.line = message, field, path, line

    def __str__(self) -> str:
        place = [f"{self.path}:{self.line}" if self.line is not None else self.path, self.field]
        return ": ".join([part for part in place if part] + [self.message])


def show_value(value: Any) -> str:
    """Format a value with its type, abbreviated, for an error message."""
    text = repr(value)
    return f"{text[:60]}... ({type(value).__name__})" if len(text) > 60 else f"{text} ({type(value).__name__})"
