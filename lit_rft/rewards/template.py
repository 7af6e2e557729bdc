"""The pool's access to the processes that grade: a template process, and the workers that it forks."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from importlib.util import find_spec
from multiprocessing import Pipe
from typing import Any

from lit_rft.rewards import worker

START_LIMIT = 300.0  # seconds for imports and warm-up, also on a busy machine


class TemplateError(RuntimeError):
    """The template process could not start, or has died."""


class Template:
    """A fresh interpreter that imports the parsers once and forks workers; it never imports the running script.

    Args:
        memory_limit: maximum bytes of address space of each worker.

    Raises:
        ImportError: math-verify is not installed.
        TemplateError: the process did not start in time.
    """

    def __init__(self, memory_limit: int) -> None:
        if find_spec("math_verify") is None:
            raise ImportError("grading mathematics needs math-verify: pip install 'lit-rft[math]'")
        self._control, far_end = socket.socketpair()
        self._control.settimeout(START_LIMIT)
        fd, path = far_end.fileno(), [str(entry) for entry in sys.path]
        call = f"from lit_rft.rewards.worker import main; main({fd}, {memory_limit})"
        code = f"import sys; sys.path[:] = {path!r}; {call}"
        # a separate session: Ctrl-C does not reach it, the pool stops it
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[fd], stdin=subprocess.DEVNULL, start_new_session=True
        )
        far_end.close()
        try:
            self._expect_ready()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _expect_ready(self) -> None:
        try:
            answer = self._control.recv(1024)
        except OSError as error:
            raise TemplateError(f"the process that grades answers was not ready after {START_LIMIT:g} s") from error
        if answer != worker.READY:
            reason = answer.decode(errors="replace") or f"exit code {self._process.wait()}; its error stands above"
            raise TemplateError(f"the process that grades answers did not start: {reason}")

    def fork(self) -> Worker:
        """Start a worker.

        Raises:
            TemplateError: If the template has died.
        """
        connection, far_end = Pipe()
        try:
            socket.send_fds(self._control, [worker.START], [far_end.fileno()])
            pid = self._control.recv(64)
        except OSError as error:
            raise TemplateError(f"the process that grades answers has died: {error}") from error
        finally:
            far_end.close()
        if not pid:
            raise TemplateError("the process that grades answers has died")
        return Worker(connection, int(pid))

    def end(self, pid: int) -> int:
        """Kill a worker. A dead template has none; the next `fork` raises the error.

        Returns:
            The signal that ended it, an earlier one if it was dead; 0 if there is none, or it is not known.
        """
        with contextlib.suppress(OSError):
            self._control.sendall(worker.END + str(pid).encode())
            return int(self._control.recv(64) or 0)
        return 0

    def close(self) -> None:
        """Stop the template and its workers."""
        self._control.close()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Worker:
    """The pool's view of a worker.

    Attributes:
        pid: process id.
        connection: the pool's end of the pipe.
        index: number of the current request; None while idle.
        deadline: of that request, by the monotonic clock.
    """

    def __init__(self, connection: Any, pid: int) -> None:
        self.connection, self.pid = connection, pid
        self.index: int | None = None
        self.deadline = float("inf")

    def send(self, index: int, deadline: float, request: tuple[Any, ...]) -> None:
        """Send a request. A dead process raises no error here; its pipe ends."""
        self.index, self.deadline = index, deadline
        with contextlib.suppress(OSError):
            self.connection.send_bytes(json.dumps(request).encode())

    def receive(self) -> Any:
        """Receive the response and become idle.

        Raises:
            EOFError: If the process is dead.
            OSError: If the process is dead.
        """
        answer = json.loads(self.connection.recv_bytes())
        self.index, self.deadline = None, float("inf")
        return answer
