"""Resident memory of process groups, read from Linux's ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def can_measure() -> bool:
    """Return whether this system reports the memory of processes."""
    return (_PROC / "self/statm").exists()


def group_memory(leader: int) -> float:
    """Return the resident memory of all processes of a group, in MiB.

    A group holds a worker and everything that its environment has started (a Java process, for example), including
    orphaned grandchildren. Pages shared by several processes count once for each, about 10 MiB for an interpreter.

    Kernel limits are no alternative: RLIMIT_AS counts reserved addresses, of which a JVM reserves many times its use,
    so that it does not even start; and all limits are per process.

    Args:
        leader: number of the group, which is the id of its first process.
    """
    pages = 0
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
                # the name, in parentheses, may contain any characters; the group's number is the third field after it
                if int(stat.rpartition(")")[2].split()[2]) == leader:
                    pages += int((entry / "statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError, PermissionError):  # ended meanwhile, or hidden
                continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
