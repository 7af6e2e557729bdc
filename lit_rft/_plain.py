"""Settings as plain data: JSON-like values to save and to compare, with the names of their classes."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

OBJECT = "object"  # key of the description of an object that is not plain data


def to_plain(value: Any, *, deep: bool = False) -> Any:
    """Convert settings to JSON-like data: dictionaries, lists, strings, numbers, None.

    Other objects (a reward function) become `{"object": "module.Class"}`.

    Args:
        value: the settings.
        deep: describe other objects by their public attributes, too, and a `functools.partial` by its arguments.
    """
    plain = functools.partial(to_plain, deep=deep)
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _setting(value, field.name, deep) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    for kind in (bool, int, float, str):  # subclasses, as of str
        if isinstance(value, kind):
            return kind(value)
    if hasattr(value, "__fspath__"):
        return str(value)
    return _describe_deeply(value) if deep else _describe(value)


def with_class(settings: Any, *, deep: bool = False) -> dict[str, Any]:
    """Convert settings whose class is a setting, too: `class_path` and `init_args`, as in a config.

    Args:
        settings: an object; the public attributes of one that is no dataclass stand for its arguments.
        deep: see `to_plain`.
    """
    fields = settings if dataclasses.is_dataclass(settings) else _public_attributes(settings)
    return {"class_path": _name_of(type(settings)), "init_args": to_plain(fields, deep=deep)}


def annotated_options(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union; any other annotation alone."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _setting(settings: Any, name: str, deep: bool) -> Any:
    """Convert one of the settings; a part whose class is a setting (an agent's answer format), with its class."""
    value = getattr(settings, name)
    if not dataclasses.is_dataclass(value):
        return to_plain(value, deep=deep)
    if type(value) not in annotated_options(typing.get_type_hints(type(settings))[name]):
        return with_class(value, deep=deep)
    return to_plain(value, deep=deep)


def _describe(value: Any) -> dict[str, str]:
    return {OBJECT: _name_of(value if isinstance(value, (type, types.FunctionType)) else type(value))}


def _describe_deeply(value: Any) -> dict[str, Any]:
    if isinstance(value, functools.partial):
        described: dict[str, Any] = to_plain(value.func, deep=True)
        return {**described, "arguments": to_plain([value.args, value.keywords], deep=True)}
    if hasattr(value, "__qualname__"):  # a class, function or method
        return {OBJECT: _name_of(value)}
    return with_class(value, deep=True)


def _public_attributes(value: Any) -> dict[str, Any]:
    attributes = vars(value) if hasattr(value, "__dict__") else {}
    return {name: attribute for name, attribute in attributes.items() if not name.startswith("_")}


def _name_of(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"
