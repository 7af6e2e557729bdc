"""The file of a wrong key, among several configurations and those that they build on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_rft.config_layers import Layer

_TRANSPARENT = ("config", "init_args")  # may be left out of a key


def name_file(message: str, layers: Iterable[Layer], arguments: Sequence[str]) -> str:
    """Put the name of the file that sets the key of an error before its message.

    Args:
        message: begins with the key, or has the words `no key`.
        layers: of all configurations, later ones on top.
        arguments: of the command; a key that is set there is in no file.
    """
    parts = _key(message)
    given = [_parts(argument[2:].partition("=")[0]) for argument in arguments if argument.startswith("--")]
    if not parts or any(other[: len(parts)] == parts for other in given):
        return message
    paths = [path for path, settings in layers if _sets(settings, parts, message)]
    return f"{paths[-1]}: {message}" if paths and paths[-1] else message


def _key(message: str) -> list[str]:
    """Return the parts of the key that a message is about."""
    if match := re.match(r"(?:(?:\w+ \()?([\w.+]+)\)?: )?no key '([\w.+]+)'", message):
        return _parts(f"{match[1]}.{match[2]}" if match[1] else match[2])
    return _parts(match[1]) if (match := re.match(r"([\w.+]+)[: ]", message)) else []


def _parts(key: str) -> list[str]:
    return [part for part in key.split(".") if part and part not in _TRANSPARENT]


def _sets(value: Any, parts: Sequence[str], message: str) -> bool:
    """Return whether settings have a key: a class has it only if the message is about its name."""
    if not parts:
        return not isinstance(value, Mapping) or "no key" in message or repr(value.get("class_path")) in message
    if not isinstance(value, Mapping):
        return False
    inner = value.get("init_args")
    return (parts[0] in value and _sets(value[parts[0]], parts[1:], message)) or _sets(inner, parts, message)
