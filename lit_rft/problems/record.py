"""The record of one problem."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from lit_rft._records import RecordError, show_value

ROLES = ("system", "user", "assistant")


class ProblemError(RecordError):
    """A row that is no problem."""


@dataclass(frozen=True)
class Problem:
    """A prompt, the answer that is right, and what others answered.

    Attributes:
        id: unique within a data set.
        prompt: messages, each with ``role`` and ``content``; the last one is the user's.
        ground_truth: the final answer, with or without dollars, units, and so on.
        traces: off-policy answers, each a whole completion; none in evaluation sets.
        trace_log_probs: log pi_phi of each trace's tokens under the policy that wrote it, end of turn included, as many
            as the tokenizer of the trained model makes of it; empty where they are not known.
        source: which benchmark or generator it comes from.
        extra: other columns of the row, for reward functions of one's own.
    """

    id: str
    prompt: tuple[dict[str, str], ...]
    ground_truth: str
    traces: tuple[str, ...] = ()
    trace_log_probs: tuple[tuple[float, ...], ...] = ()
    source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """What reward functions get."""
        return {**self.extra, "id": self.id, "ground_truth": self.ground_truth, "source": self.source}


def check_messages(value: Any, name: str, last: str) -> tuple[dict[str, str], ...]:
    """Messages with roles and texts.

    Raises: ProblemError naming the part that is wrong.
    """
    if isinstance(value, str):
        return ({"role": last, "content": _text(value, name)},)
    if not isinstance(value, list) or not value:
        raise ProblemError(f"expected a list of messages, or a text, got {show_value(value)}", name)
    messages = []
    for i, message in enumerate(value):
        where = f"{name}[{i}]"
        if not isinstance(message, dict):
            raise ProblemError(f"expected a message with role and content, got {show_value(message)}", where)
        role = message.get("role")
        if role not in ROLES:
            raise ProblemError(f"expected one of {', '.join(ROLES)}, got {show_value(role)}", f"{where}.role")
        messages.append({"role": role, "content": _text(message.get("content"), f"{where}.content")})
    if messages[-1]["role"] != last:
        raise ProblemError(f"expected the last message to be the {last}'s, got {messages[-1]['role']!r}", name)
    return tuple(messages)


def check_text(value: Any, name: str) -> str:
    """A text that is not empty; numbers are written out.

    Raises: ProblemError, also for NaN and infinity.
    """
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ProblemError(f"expected a text or a finite number, got {show_value(value)}", name)
        value = format(Decimal(repr(value)) if isinstance(value, float) else Decimal(value), "f")  # never 1e-05
    return _text(value, name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ProblemError(f"expected a text, got {show_value(value)}", name)
    if not value.strip():
        raise ProblemError("expected some text, got an empty one", name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ProblemError(f"expected text that UTF-8 can hold: {error}", name) from error
    return value
