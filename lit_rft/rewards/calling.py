"""Call a reward function in the form of its signature, and check its result."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

RewardFunction = Callable[..., Sequence[float]]
BATCH_ARGUMENTS = ("prompts", "completions", "completion_ids")
_FORMS = (
    "expected (completions, rows), or parameters by name: completions, prompts, completion_ids and columns of "
    "the problems (ground_truth, ...), as in `def reward(completions, ground_truth, **kwargs)`"
)


class RewardError(ValueError):
    """A reward function cannot be called, or returned something else than one finite number per completion."""


def reward_name(function: Any) -> str:
    """Name a reward function in messages."""
    function = function.func if isinstance(function, functools.partial) else function
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def check_reward(function: Any) -> None:
    """Check that a reward function can be called.

    Raises:
        RewardError: If it has neither form of `compute_rewards`.
    """
    _parameters(function)


def compute_rewards(
    function: RewardFunction,
    completions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Any] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    allow_none: bool = False,
) -> list[Any]:
    """Call a reward function on a batch.

    A function whose first parameters are `(completions, rows)` gets those by position. Any other is called by name, as
    in TRL: with `completions`, `prompts`, `completion_ids` and each column of the rows as a list, restricted to its
    parameters unless it has `**kwargs`.

    Args:
        function: the reward function.
        completions: texts.
        rows: the row of data of each completion.
        prompts: messages of each completion's prompt.
        completion_ids: token ids of each completion.
        allow_none: allow None ("does not apply") as a result.

    Returns:
        A finite number for each completion, or None if allowed.

    Raises:
        RewardError: The message names the function, and the row if one is at fault.
    """
    if len(completions) != len(rows):
        raise RewardError(
            f"expected one row of data per completion, got {len(completions)} completions and {len(rows)} rows"
        )
    parameters = _parameters(function)
    if not completions:
        return []
    extra = {"prompts": prompts, "completion_ids": completion_ids}
    available: dict[str, Any] = {name: list(value) for name, value in extra.items() if value is not None}
    if _is_by_rows(parameters):
        named = {name: value for name, value in available.items() if name in parameters}
        return _checked(function, function(list(completions), rows, **named), rows, allow_none)
    columns = dict.fromkeys(name for row in rows for name in row)
    available = {**{name: [row.get(name) for row in rows] for name in columns}, **available}
    available["completions"] = list(completions)
    return _checked(function, function(**_arguments(function, parameters, available)), rows, allow_none)


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    name = reward_name(function)
    if not callable(function):
        raise RewardError(f"the reward {name} is not callable: {_FORMS}")
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise RewardError(
            f"the reward function {name} is async: expected a plain function (call asyncio.run inside it)"
        )
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError) as error:
        raise RewardError(f"the reward function {name} has no readable signature: {_FORMS}") from error
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    by_position_only = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_ONLY]
    unnamed = bool(by_position_only) and not _is_by_rows(parameters)
    if unnamed or (not takes_any and "completions" not in parameters):
        raise RewardError(f"the reward function {name}{inspect.signature(function)} cannot be called: {_FORMS}")
    if "rows" in parameters and not _is_by_rows(parameters):
        signature = inspect.signature(function)
        raise RewardError(f"the reward function {name}{signature} has rows in another position: {_FORMS}")
    return parameters


def _is_by_rows(parameters: Mapping[str, inspect.Parameter]) -> bool:
    by_name = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    return list(parameters)[:2] == ["completions", "rows"] and not {"completions", "rows"} & set(by_name)


def _arguments(
    function: Any, parameters: Mapping[str, inspect.Parameter], available: Mapping[str, Any]
) -> dict[str, Any]:
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        wanted = dict(available)
    else:
        wanted = {name: value for name, value in available.items() if name in parameters}
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    for name, parameter in parameters.items():
        if parameter.kind not in variadic and parameter.default is parameter.empty and name not in wanted:
            raise RewardError(
                f"the reward function {reward_name(function)} needs {name}, which the problems do not have: "
                f"expected one of {', '.join(sorted(available))}, or a default value"
            )
    return wanted


def _checked(function: Any, result: Any, rows: Sequence[Mapping[str, Any]], allow_none: bool) -> list[Any]:
    """Return a plain float for each completion, or None if allowed."""
    name, number = reward_name(function), len(rows)
    if inspect.iscoroutine(result):
        result.close()
        raise RewardError(f"the reward function {name} returned a coroutine: expected a list of {number} numbers")
    result = result.tolist() if hasattr(result, "tolist") else result  # numpy, torch
    if not isinstance(result, (list, tuple)):
        raise RewardError(f"the reward function {name} returned {_show(result)}: expected a list of {number} numbers")
    if len(result) != number:
        raise RewardError(f"the reward function {name} returned {len(result)} rewards for {number} completions")
    return [_number(name, value, index, rows[index], allow_none) for index, value in enumerate(result)]


def _number(name: str, value: Any, index: int, row: Mapping[str, Any], allow_none: bool) -> float | None:
    where = f"for completion {index}" + (f" of problem {row['id']}" if "id" in row else "")
    if value is None:
        if allow_none:
            return None
        raise RewardError(
            f"the reward function {name} returned None {where}: expected a number. None (does not apply) is possible "
            "only in a RewardSum, where another function gives this completion its reward"
        )
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise RewardError(f"the reward function {name} returned {_show(value)} {where}: expected a number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError(f"the reward function {name} returned {_show(value)} {where}: expected a number") from error
    if not math.isfinite(number):
        raise RewardError(f"the reward function {name} returned {number} {where}: expected a finite number")
    return number


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}... ({type(value).__name__})" if len(text) > 60 else f"{text} ({type(value).__name__})"


def close_reward(function: RewardFunction) -> None:
    """Stop the worker processes of a reward function, if it has a method `close`."""
    close = getattr(function, "close", None)
    if close is not None:
        close()
