"""Servers that keep one episode at a time: each environment of this machine uses one that no other one uses."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_PATIENCE = 5.0  # seconds; the kernel releases the locks of a killed worker


class ServerLease:
    """The exclusive use of one of several servers, among all processes and threads of this user on this machine.

    It ends with `release`, or with the process.

    Args:
        urls: the servers.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(urls)
        self._lock: IO[bytes] | None = None

    def take(self, patience: float = _PATIENCE) -> str:
        """Return the address of the first free server, now in use.

        Args:
            patience: maximum seconds to wait for one.

        Raises:
            ValueError: all are in use.
        """
        end = time.monotonic() + patience
        while True:
            for url in self._urls:
                if (lock := _try_lock(url)) is not None:
                    self._lock = lock
                    return url
            if time.monotonic() >= end:
                raise ValueError(
                    f"expected a free server for each environment, got url {', '.join(self._urls)}, in use by others: "
                    f"add servers, or set acting.parallel_episodes (--workers of collect) to at most {len(self._urls)}"
                )
            time.sleep(0.05)

    def release(self) -> None:
        """Let others use the server. A second call does nothing."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _try_lock(url: str) -> IO[bytes] | None:
    """Return the locked file of a server; None if it is in use."""
    folder = Path(tempfile.gettempdir()) / f"lit-rft-servers-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    stream = (folder / hashlib.sha256(url.encode()).hexdigest()[:16]).open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream
