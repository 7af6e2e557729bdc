"""Types of the keys of an environment's info (`StepInfo`), for the contract and for `check_env`."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lit_rft._records import encoding_error
from lit_rft._records import is_finite as is_finite_float
from lit_rft.episodes.record import Achieved

RESET_ONLY = ("env", "env_version", "task_description")


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, numbers.Real) and is_finite_float(value)


def is_flag(value: Any) -> bool:
    """Return whether a value is True or False, of Python or of numpy."""
    return isinstance(value, bool | np.bool_)


def expected_type(name: Any, value: Any) -> str | None:
    """Describe the type that the value of a key of `StepInfo` should have; None if it has it, or for another key."""
    if name not in _TYPES:
        return None
    expected, is_right = _TYPES[name]
    if is_right(value):
        return None
    return f"{expected} that UTF-8 can encode" if isinstance(value, str) and encoding_error(value) else expected


def _is_text(value: Any) -> bool:
    """Return whether a value is text that UTF-8 can encode: records of episodes are."""
    return isinstance(value, str) and not encoding_error(value)


def _is_list(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(is_item, value))


def _is_condition(value: Any) -> bool:
    return isinstance(value, str | Achieved) or (
        isinstance(value, Mapping) and value.keys() == {"key", "text"} and all(map(_is_text, value.values()))
    )


def _are_metrics(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_text(key) and key and is_finite(value[key]) for key in value)


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "env": ("text", _is_text),
    "env_version": ("text", _is_text),
    "task_description": ("text", _is_text),
    "score": ("a finite number", is_finite),
    "success": ("True or False", is_flag),
    "valid": ("True or False", is_flag),
    "reason": ("text or None", lambda value: value is None or _is_text(value)),
    "achieved": (
        "a list of texts or of {'key': ..., 'text': ...}",
        lambda value: _is_list(value, _is_condition),
    ),
    "admissible": ("a list of texts", lambda value: _is_list(value, _is_text)),
    "metrics": ("a dictionary of finite numbers", _are_metrics),
}
