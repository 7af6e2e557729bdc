"""The place where an exception was raised."""

from __future__ import annotations

import dis
from types import TracebackType

_RAISE = dis.opmap["RAISE_VARARGS"]


def innermost_entry(trace: TracebackType | None) -> TracebackType | None:
    """Return the innermost entry of a traceback; None for none."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def package_of(trace: TracebackType) -> str:
    """Return the top-level package of an entry's code."""
    name: str = trace.tb_frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def is_explicit(trace: TracebackType) -> bool:
    """Return whether an entry raised by the statement `raise`, rather than by an operation that failed."""
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE
