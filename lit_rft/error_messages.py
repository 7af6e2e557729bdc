"""Errors for users: one line with the key, the value, and what is allowed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import os
import re
import sys
import threading
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from lit_rft._raising import innermost_entry, is_explicit, package_of

_OURS = ("lit_rft", "lightning", "jsonargparse")
_STRUCTURE = re.compile(
    r"(Does not validate against|Subtypes:|Errors:|Given value|Subclass types expect|a class path \(str\)|a dict with|"
    r"a dict without|Problem with given class_path|Parser key|Expected a path but|Not a valid subclass of$)"
)


class UsageError(ValueError):
    """A command or a configuration that cannot be run; the message is for the user."""


class OneLineParser(argparse.ArgumentParser):
    """Raises `UsageError`, reported in one line, in place of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def debugging() -> bool:
    """Return whether errors are shown with their traceback: `--debug`, or LIT_RFT_DEBUG=1."""
    return os.environ.get("LIT_RFT_DEBUG", "") not in ("", "0", "false")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with one line for a user's error: exit code 2 for an invalid command, 1 for a failed run.

    Other exceptions are bugs, of this library or of user code, and keep their traceback. Errors of the file system in
    other threads (of a logger that writes in the background) are one line, too.
    """
    try:
        with _one_line_in_threads():
            yield
    except Exception as error:
        if debugging() or not is_meant_for_users(error):
            raise
        _print_error(one_line(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)


@contextlib.contextmanager
def _one_line_in_threads() -> Iterator[None]:
    before = threading.excepthook

    def report(arguments: threading.ExceptHookArgs) -> None:
        if isinstance(arguments.exc_value, OSError) and not debugging():
            _print_error(one_line(arguments.exc_value))
        else:
            before(arguments)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before


def _print_error(message: str) -> None:
    print(f"lit-rft: error: {message}", file=sys.stderr, flush=True)


def is_meant_for_users(error: BaseException) -> bool:
    """Return whether an exception was raised explicitly (by this library or Lightning), or by the file system."""
    if isinstance(error, UsageError | OSError):
        return True
    last = innermost_entry(error.__traceback__)
    return last is not None and package_of(last) in _OURS and is_explicit(last)


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line, with its type if the message is not clear without it."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror} ({type(error).__name__}); --debug shows where"
    return text


# --- messages of the parser ------------------------------------------------------------------------------------------


def innermost(message: str) -> str:
    """Return the reason in a parser's message (a tree of all attempts) as `KEY: expected ..., got ...`."""
    keys: list[str] = []
    leaves: list[tuple[int, str]] = []
    given = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ").strip()
        if match := re.match(r'Parser key "([^"]+)":\s*(.*)', text):
            keys.append(match.group(1))
            text = match.group(2)
        elif text.startswith("Problem with given class_path"):
            keys.append("init_args")
        elif text.startswith("Given value:") and not given:
            given = _given(text.removeprefix("Given value:").strip())
        if text and not _STRUCTURE.match(text):
            leaves.append((len(line) - len(line.lstrip()), text))
    leaves = [leaf for leaf in leaves if "<class 'NoneType'>" not in leaf[1]] or leaves
    if not leaves:
        return " ".join(message.split())
    deepest = max(depth for depth, _ in leaves)
    reasons = list(dict.fromkeys(text for depth, text in leaves if depth == deepest))
    reason = _readable(reasons, given)
    path = _without_repeats(keys)
    if re.match(r"[\w.+]+: ", reason):  # the message of a nested parser, of a class or of settings
        return ".".join([*path, reason])
    key = ".".join(path[:-1] if path[-1:] == ["init_args"] else path)
    return f"{key}: {reason}" if key else reason


def _without_repeats(keys: Sequence[str]) -> list[str]:
    """Return the path to the first branch's leaf: `model`, `init_args`, `policy`, ..."""
    path: list[str] = []
    for key in keys:
        if key not in path or (key == "init_args" and path[-1] != "init_args"):
            path.append(key)
    return path


def _given(text: str) -> str:
    if match := re.match(r"NestedArg\(key=.*, val=(.*)\)$", text):
        return match.group(1)
    return text if len(text) < 120 else f"{text[:117]}..."


def _readable(reasons: Sequence[str], given: str) -> str:
    types_expected = [re.match(r"Expected an? (.*?)(?:\. Got value: (.*))?$", reason) for reason in reasons]
    for reason in reasons:
        if match := re.match(r"Type .* expects (a function or a callable class): (.*)", reason):
            return f"expected {match.group(1)}, got {given}: {match.group(2)}"
    if not all(types_expected):
        return "; ".join(reason for reason, typed in zip(reasons, types_expected, strict=True) if not typed)
    expected = [_type_name(match.group(1)) for match in types_expected if match]
    value = next((match.group(2) for match in types_expected if match and match.group(2)), given)
    return f"expected {' or '.join(dict.fromkeys(expected))}, got {value}"


def _type_name(text: str) -> str:
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    text = re.sub(r"(?:typing|collections\.abc)\.", "", text)
    return re.sub(r"Literal\[(.*)\]", r"one of \1", text)


def did_you_mean(wrong: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean ...?`, or nothing without a similar name."""
    near = difflib.get_close_matches(wrong, list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def places_of(key: str, classes: Mapping[str, Any]) -> list[str]:
    """Return full keys for a key: `policy.model` is `model.init_args.policy.model`.

    Args:
        key: as given.
        classes: prefix of full keys -> the class or function of the arguments below it.
    """
    first = key.partition(".")[0]
    return [f"{prefix}.{name}{key[len(first):]}" for prefix, owner in classes.items()
            for name in _argument_paths(owner) if name.rpartition(".")[2] == first]  # fmt: skip


def _argument_paths(owner: Any, depth: int = 0) -> list[str]:
    """Return the names of a callable's arguments, with those of nested settings."""
    paths = []
    hints = _hints(owner)
    for name in arguments_of(owner):
        paths.append(name)
        for part in (hints.get(name), *typing.get_args(hints.get(name))):
            if depth < 3 and isinstance(part, type) and dataclasses.is_dataclass(part):
                paths += [f"{name}.{below}" for below in _argument_paths(part, depth + 1)]
    return paths


def _hints(owner: Any) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for part in reversed(owner.__mro__[:-1]) if isinstance(owner, type) else (owner,):
        function = vars(part).get("__init__") if isinstance(part, type) else part
        if isinstance(function, types.FunctionType):
            with contextlib.suppress(NameError):  # a name imported for type checkers only
                hints |= typing.get_type_hints(function)
    return hints


def arguments_of(owner: Any) -> list[str]:
    """Return the names of a callable's arguments, including those passed on to its base classes."""
    names: dict[str, None] = {}
    for part in owner.__mro__[:-1] if isinstance(owner, type) else (owner,):
        function = vars(part).get("__init__") if isinstance(part, type) else part
        if not isinstance(function, types.FunctionType):
            continue
        parameters = list(inspect.signature(function).parameters.values())
        plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= dict.fromkeys(p.name for p in parameters if p.kind in plain and p.name != "self")
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def with_full_key(message: str, config: Mapping[str, Any]) -> str:
    """Replace the key at the beginning of a message by its full name, if the configuration has exactly one.

    Args:
        message: for example `learning_rate must be > 0, got -1.0`.
        config: full key -> value.
    """
    name = message.split(" ", 1)[0].rstrip(":,")
    if not re.fullmatch(r"[\w.]+", name):
        return message
    full = [key for key, value in config.items() if f".{key}".endswith(f".{name}") and str(value) in message]
    return full[0] + message[len(name) :] if len(full) == 1 else message
