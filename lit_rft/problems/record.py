"""The record of one problem."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from lit_rft._records import RecordError, encoding_error, show_value

ROLES = ("system", "user", "assistant")


class ProblemError(RecordError):
    """An invalid row of a data set."""


@dataclass(frozen=True)
class Problem:
    """A prompt, its ground truth, and off-policy answers.

    Attributes:
        id: unique within a data set.
        prompt: messages, each with ``role`` and ``content``; the last one is the user's.
        ground_truth: the final answer, with or without dollars, units, and so on.
        traces: off-policy answers, each a complete completion; none in evaluation sets.
        trace_log_probs: log pi_phi of each trace's tokens under the policy that wrote it, including the end of turn, in
            the tokenisation of the trained model; empty if unknown.
        source: benchmark or generator.
        repeats: number of rows that hold this problem; evaluation samples `answering.num_samples` answers for each.
        extra: other columns of the row, for user-defined reward functions.
        origin: file and row, for messages; not compared and not written.
    """

    id: str
    prompt: tuple[dict[str, str], ...]
    ground_truth: str
    traces: tuple[str, ...] = ()
    trace_log_probs: tuple[tuple[float, ...], ...] = ()
    source: str = ""
    repeats: int = 1
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = field(default="", compare=False)

    def row(self) -> dict[str, Any]:
        """Return the row for reward functions."""
        return {**self.extra, "id": self.id, "ground_truth": self.ground_truth, "source": self.source}

    def fingerprint(self) -> str:
        """Return a digest of source, prompt and ground truth: equal exactly for repeats of a problem."""
        content = json.dumps([self.source, self.prompt, self.ground_truth], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def check_text(value: Any, name: str) -> str:
    """Return a non-empty text; numbers are written out.

    Raises:
        ProblemError: Also for NaN and infinity.
    """
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        if not isinstance(value, int) and not math.isfinite(value):
            raise ProblemError(f"expected a text or a finite number, got {show_value(value)}", name)
        value = format(Decimal(repr(value)) if isinstance(value, float) else Decimal(value), "f")  # never 1e-05
    return _text(value, name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ProblemError(f"expected a text, got {show_value(value)}", name)
    if not value.strip():
        raise ProblemError("expected a text, got an empty one", name)
    if problem := encoding_error(value):
        raise ProblemError(problem, name)
    return value
