"""A worker in a separate process, which can hang or die without harm."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from lit_rft.envs.worker import serve


class WorkerProcess:
    """A `Worker` in a fresh interpreter that does not import the running script.

    Args:
        make_env: pickled callable that makes the environment.

    Attributes:
        connection, pid: see `Worker`.
    """

    def __init__(self, make_env: bytes) -> None:
        self.connection, far_end = Pipe()
        fd, path = far_end.fileno(), [str(entry) for entry in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from lit_rft.envs.worker_process import main; main({fd})"
        # A new session makes the process the leader of a group, and Ctrl-C does not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[fd], stdin=subprocess.DEVNULL, start_new_session=True
        )
        far_end.close()
        self.pid = self._process.pid
        with contextlib.suppress(OSError):  # died at once: the reader sees the end of the pipe
            self.connection.send_bytes(make_env)

    def send(self, verb: str, argument: Any = None) -> None:
        with contextlib.suppress(OSError):
            self.connection.send((verb, argument))

    def kill(self) -> None:
        """Kill the process and everything it has started, even if stopped or hung."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # before wait(): until then the group's number cannot be reused
        self._process.wait()
        self.connection.close()


def main(fd: int) -> None:
    """Serve the pool at the other end of a pipe until a close request or the end of the pipe.

    Args:
        fd: file descriptor of the pipe; its first message is the pickled callable that makes the environment.
    """
    os.set_inheritable(fd, False)  # processes started by the environment must not keep the pipe open
    connection = Connection(fd)
    make_env = connection.recv_bytes()
    requests: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, requests), daemon=True, name="requests").start()
    serve(connection, make_env, _endless(requests))


def _endless(requests: queue.SimpleQueue[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    while True:
        yield requests.get()


def _read(connection: Connection, requests: queue.SimpleQueue[tuple[str, Any]]) -> None:
    """Forward requests, in a separate thread, so that the pool's end is noticed even while the environment hangs."""
    try:
        while True:
            requests.put(connection.recv())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)  # this process and everything that the environment has started
