"""A worker in a thread of this process, for environments in pure Python."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from lit_rft.envs.worker import serve


class WorkerThread:
    """A `Worker` in a daemon thread. Requests and responses are pickled, as for processes: nothing is shared.

    Args:
        make_env: pickled callable that makes the environment.

    Attributes:
        connection, pid: see `Worker`.
    """

    pid = None

    def __init__(self, make_env: bytes) -> None:
        self.connection, far_end = Pipe()
        threading.Thread(target=_main, args=(far_end, make_env), daemon=True, name="environment").start()

    def send(self, verb: str, argument: Any = None) -> None:
        with contextlib.suppress(OSError):
            self.connection.send((verb, argument))

    def kill(self) -> None:
        """Abandon the thread: it closes its environment and ends when its current call returns."""
        self.connection.close()


def _main(connection: Connection, make_env: bytes) -> None:
    with connection:
        serve(connection, make_env, _requests(connection))


def _requests(connection: Connection) -> Iterator[tuple[str, Any]]:
    with contextlib.suppress(EOFError, OSError):  # the pool has closed its end
        while True:
            yield connection.recv()
