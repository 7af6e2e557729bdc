"""Resident memory of process groups, read from Linux's ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def can_measure() -> bool:
    """Return whether this system tells the memory of processes."""
    return (_PROC / "self/statm").exists()


def group_memory(leader: int) -> float:
    """Return the resident memory of all processes of a group, in MiB.

    A group holds a worker and everything that its environment has started (a Java process, say), grandchildren whose
    parent has ended included. Pages that several processes share count once for each, about 10 MiB for an interpreter.

    A limit of the kernel's would not do. RLIMIT_AS counts reserved addresses, of which a JVM takes many times what it
    uses, so that it does not even start; and all of them hold for single processes.

    Args:
        leader: number of the group, which is the id of its first process.
    """
    pages = 0
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
                # the name, in parentheses, may hold any characters; the group's number is the third field after it
                if int(stat.rpartition(")")[2].split()[2]) == leader:
                    pages += int((entry / "statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
