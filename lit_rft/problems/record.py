"""The record of one problem."""

from __future__ import annotations

import hashlib
import json
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
        repeats: number of rows that hold this problem; evaluation samples `answering.num_samples` answers for each.
        extra: other columns of the row, for reward functions of one's own.
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
        """What reward functions get."""
        return {**self.extra, "id": self.id, "ground_truth": self.ground_truth, "source": self.source}

    def fingerprint(self) -> str:
        """Digest of source, prompt and ground truth: equal for repeats of a problem, and for them only."""
        content = json.dumps([self.source, self.prompt, self.ground_truth], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def check_text(value: Any, name: str) -> str:
    """A text that is not empty; numbers are written out.

    Raises:
        ProblemError: Also for NaN and infinity.
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
