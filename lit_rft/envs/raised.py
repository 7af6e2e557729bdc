"""Exceptions of environments for their authors: which call raised what, and the line of the author's code."""

from __future__ import annotations

import functools
import inspect
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from lit_rft._raising import innermost_entry, is_explicit, package_of

_LIBRARY = "lit_rft"
_STANDARD = sysconfig.get_path("stdlib")
_CALLERS = {f"{_LIBRARY}.envs.{name}" for name in ("worker", "episode_env", "checking.examiner")}
_SIGNATURES = {
    "reset": ": reset must take seed and options",
    "step": ": step must take the action",
    "constructor": ": the keyword arguments (env_args) must be those that it takes",
}


class WorkerTracebackError(Exception):
    """The traceback in the worker, as the cause of an exception that is raised again in the pool."""

    def __init__(self, text: str) -> None:
        super().__init__(f"in the environment's worker:\n{text}")


def type_and_message(error: BaseException) -> str:
    """Return type and message of an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def describe_error(error: Exception, method: str, called: Any = None) -> str:
    """Return type, message and place of an exception, such as ``KeyError: 'size' (/home/me/my_envs.py:12)``.

    The place is the last line of the author's code, not of the packages that it calls. If the call itself was wrong,
    no line of it was reached: then it is the line of the definition, with the arguments that are expected.

    Args:
        error: with its traceback.
        method: ``constructor``, ``reset``, ``step`` or ``close``.
        called: the class or function that raised, for the line of its definition.
    """
    last = innermost_entry(error.__traceback__)
    if last is None or is_refusal(error):
        return type_and_message(error)
    if isinstance(error, TypeError) and last.tb_frame.f_globals.get("__name__") in _CALLERS and not is_explicit(last):
        return f"{type_and_message(error)}{_definition_of(called)}{_SIGNATURES.get(method, '')}"
    entry = _entry_of_author(error.__traceback__) or last
    return f"{type_and_message(error)} ({entry.tb_frame.f_code.co_filename}:{entry.tb_lineno})"


def is_refusal(error: Exception) -> bool:
    """Return whether the library raised an exception on purpose: its message needs no place."""
    last = innermost_entry(error.__traceback__)
    if last is None or package_of(last) != _LIBRARY or not is_explicit(last):
        return False
    return _entry_of_author(error.__traceback__) is None


def name_of(make_env: Callable[..., Any]) -> str:
    """Return the name of the environments that a factory makes: of a class or function, or of a suite."""
    while isinstance(make_env, functools.partial):
        make_env = make_env.func
    suite = getattr(make_env, "__self__", None)
    return str(getattr(suite, "name", None) or getattr(make_env, "__qualname__", type(make_env).__name__))


def _entry_of_author(trace: TracebackType | None) -> TracebackType | None:
    """Return the innermost entry outside this library, the standard library and installed packages."""
    innermost = None
    while trace is not None:
        innermost = trace if _is_of_author(trace) else innermost
        trace = trace.tb_next
    return innermost


def _is_of_author(entry: TracebackType) -> bool:
    file = entry.tb_frame.f_code.co_filename
    if package_of(entry) == _LIBRARY or file.startswith("<"):
        return False
    parts = Path(file).parts
    return not file.startswith(f"{_STANDARD}/") and "site-packages" not in parts and "dist-packages" not in parts


def _definition_of(called: Any) -> str:
    while isinstance(called, functools.partial):
        called = called.func
    try:
        return f" ({inspect.getsourcefile(called)}:{inspect.getsourcelines(called)[1]})"
    except (OSError, TypeError):  # no Python source
        return ""
