"""Problems of one data set: repeats are counted and kept once, and every id is unique."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lit_rft.problems.record import Problem

logger = logging.getLogger(__name__)

_SHOWN = 8  # benchmarks named in a message


def merge_repeats(problems: Iterable[Problem]) -> list[Problem]:
    """Keep one of all problems with the same source, prompt and ground truth, and make ids unique.

    A kept problem has the traces of all its rows, their number in `repeats`, and id and other columns of the first one.
    Different problems with the same id (from two files) get ids with a part of their fingerprint: `7#3fa2b1c9`.
    """
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.fingerprint(), []).append(problem)
    merged = {fingerprint: _merge(rows) for fingerprint, rows in groups.items()}
    _report(list(groups.values()))
    return _with_unique_ids(merged)


def _merge(rows: Sequence[Problem]) -> Problem:
    if len(rows) == 1:
        return rows[0]
    traces: dict[str, tuple[float, ...]] = {}
    for row in rows:
        for trace, log_probs in zip(row.traces, row.trace_log_probs or ((),) * len(row.traces), strict=True):
            traces[trace] = traces.get(trace) or log_probs
    log_probs_known = any(traces.values())
    return replace(
        rows[0],
        traces=tuple(traces),
        trace_log_probs=tuple(traces.values()) if log_probs_known else (),
        repeats=sum(row.repeats for row in rows),
    )


def _with_unique_ids(merged: dict[str, Problem]) -> list[Problem]:
    counts = Counter(problem.id for problem in merged.values())
    taken = set(counts)
    problems = []
    for fingerprint, problem in merged.items():
        name = problem.id
        if counts[name] > 1:
            length = 8
            while (name := f"{problem.id}#{fingerprint[:length]}") in taken:
                length += 1
            taken.add(name)
        problems.append(problem if name == problem.id else replace(problem, id=name))
    return problems


def _report(groups: Sequence[Sequence[Problem]]) -> None:
    repeated = [rows for rows in groups if len(rows) > 1]
    if not repeated:
        return
    times: dict[str, list[int]] = {}
    for rows in repeated:
        times.setdefault(rows[0].source or "problems", []).append(sum(row.repeats for row in rows))
    parts = [f"{source}: {len(n)} repeated, {_range(n)} rows each" for source, n in list(times.items())[:_SHOWN]]
    if len(times) > _SHOWN:
        parts.append(f"and {len(times) - _SHOWN} more")
    rows_read = sum(map(len, groups))
    logger.info("%d of %d rows are repeats, equal in source, prompt and ground truth; each problem is kept once (%s)",
                rows_read - len(groups), rows_read, "; ".join(parts))  # fmt: skip
    differing = sorted({name for rows in repeated for name in _differing(rows)})
    if differing:
        logger.warning("repeats differ in the columns %s: the values of the first row are kept", ", ".join(differing))


def _differing(rows: Sequence[Problem]) -> list[str]:
    """Return the other columns in which repeats differ, without `extra_info`, which numbers the rows."""
    first = rows[0].extra
    names = dict.fromkeys(name for row in rows for name in row.extra)
    names.pop("extra_info", None)
    return [name for name in names if any(row.extra.get(name) != first.get(name) for row in rows)]


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
