"""Hyper-parameters of a stage as plain data: saved in checkpoints, compared on resume, rebuilt on loading."""

import dataclasses
import importlib
import inspect
import logging
import sys
import typing
from collections.abc import Mapping
from typing import Any

from lit_rft._plain import OBJECT, annotated_options, to_plain, with_class

logger = logging.getLogger(__name__)

_MISSING = "(not set)"

# Attribute with the effective value of an argument that may be None, if it has another name.
_ATTRIBUTES = {"policy": "policy_settings", "optimizer": "optimizer_settings", "critic": "critic_settings"}


def constructor_arguments(module: Any) -> dict[str, Any]:
    """Return the arguments of the call of `module`'s constructor, including the defaults of those for base classes.

    To be called in the constructor of a base class.
    """
    frame, constructors = inspect.currentframe(), []
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is module:
            constructors.append(frame)
        frame = frame.f_back
    if not constructors:
        raise RuntimeError("constructor_arguments must be called while the module is constructed")
    arguments: dict[str, Any] = {}
    for constructor in reversed(constructors):
        names, _, keywords, values = inspect.getargvalues(constructor)
        call_arguments = {name: values[name] for name in names[1:]} | (values[keywords] if keywords else {})
        arguments = call_arguments | arguments
        if not keywords:
            break
    return arguments


def effective(module: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as plain data, with the module's values in place of None: defaults, and the run's seed."""
    plain, hints = {}, _constructor_hints(type(module))
    for name, value in arguments.items():
        chosen = getattr(module, _ATTRIBUTES.get(name, name), None)
        if value is None:
            value = chosen if dataclasses.is_dataclass(chosen) or name == "seed" else None
        by_class = dataclasses.is_dataclass(value) and type(value) not in annotated_options(hints.get(name, Any))
        plain[name] = with_class(value) if by_class else to_plain(value)  # a part given by class_path, with its class
        settings = plain[name]["init_args"] if by_class else plain[name]
        if isinstance(settings, dict) and settings.get("seed", 0) is None:
            settings["seed"] = getattr(chosen, "seed", None)
    return plain


def rebuild_arguments(cls: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Make constructor arguments of `cls` from plain data.

    A part set by class path is made again with its settings; of any other object there is only a description: it gets
    its default, with a warning.
    """
    hints = _constructor_hints(cls)
    arguments: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict) and OBJECT in value:
            logger.warning(
                "%s was %s, which a checkpoint does not hold: the default takes its place; pass %s=... to "
                "load_from_checkpoint for another", name, value[OBJECT], name,
            )  # fmt: skip
            arguments[name] = None
        else:
            arguments[name] = _rebuild(hints.get(name, Any), value)
    return arguments


def _constructor_hints(cls: type) -> dict[str, Any]:
    """Return the annotations of the constructor's arguments, including those of base classes."""
    hints: dict[str, Any] = {}
    for owner in reversed(cls.__mro__[:-1]):
        if "__init__" in vars(owner):
            hints |= typing.get_type_hints(vars(owner)["__init__"])
    return hints


def _rebuild(annotation: Any, value: Any) -> Any:
    """Make a dataclass from a dictionary if the annotation has one, also as a value; others are plain already."""
    if isinstance(value, dict) and set(value) == {"class_path", "init_args"}:
        return _rebuild(_settings_class(value["class_path"]), value["init_args"])
    if isinstance(value, dict) and typing.get_origin(annotation) is dict:
        of_values = typing.get_args(annotation)[1]
        return {key: _rebuild(of_values, item) for key, item in value.items()}
    classes = [option for option in annotated_options(annotation) if isinstance(option, type)]
    settings = [option for option in classes if dataclasses.is_dataclass(option)]
    if not isinstance(value, dict) or len(settings) != 1:
        return value
    hints = typing.get_type_hints(settings[0])
    return settings[0](**{name: _rebuild(hints.get(name, Any), item) for name, item in value.items()})


def _settings_class(path: str) -> type:
    """Find a dataclass by its path in this library or among imported modules: a checkpoint must not import others.

    Raises:
        ValueError: If it is not there.
    """
    module, _, name = path.rpartition(".")
    loaded = importlib.import_module(module) if module.startswith("lit_rft.") else sys.modules.get(module)
    cls = getattr(loaded, name, None)
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise ValueError(f"the checkpoint needs {path}, which is not imported: import {module} first")
    return cls


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted keys, as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return the dotted keys whose values differ, each with "old -> new"."""
    old, new = flatten(before), flatten(now)
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key, _MISSING) != new.get(key, _MISSING)]
    return {key: f"{old.get(key, _MISSING)} -> {new.get(key, _MISSING)}" for key in keys}
