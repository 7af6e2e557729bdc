"""Invalid records: their errors with the place, and the check of their fields."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
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


def is_finite(number: typing.SupportsFloat) -> bool:
    """Return whether a number is finite as a float; integers above about 1.8e308 are not."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def encoding_error(text: str) -> str:
    """Return why a text cannot be encoded as UTF-8 (it has half of a surrogate pair); empty if it can."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        return f"expected text that can be encoded as UTF-8: {error}"
    return ""


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name."""
    return typing.get_type_hints(cls)


def join_fields(parent: str, name: str) -> str:
    """Return the path of a field."""
    return f"{parent}.{name}" if parent else name


def check_fields(cls: Any, value: Any, where: str, error: type[RecordError]) -> dict[str, Any]:
    """Check that a plain value is an object with all required fields of a dataclass, and no others.

    Args:
        cls: the dataclass.
        value: from a file.
        where: path of the value.
        error: raised for a wrong one.

    Returns:
        The types of the given fields, by name.
    """
    if not isinstance(value, dict):
        raise error(f"expected an object, got {show_value(value)}", where)
    known = _fields(cls)
    for name in value:
        if name not in known:
            raise error(f"unknown field; known are {', '.join(known)}", join_fields(where, str(name)))
    for name, is_required in known.items():
        if is_required and name not in value:
            raise error("missing", join_fields(where, name))
    return {name: field_types(cls)[name] for name in value}


@functools.cache
def _fields(cls: Any) -> dict[str, bool]:
    """Return the names of a dataclass's fields, and whether each is required."""
    missing = dataclasses.MISSING
    return {f.name: f.default is missing and f.default_factory is missing for f in dataclasses.fields(cls)}
