"""Processes that grade answers: a template with everything imported and warmed up, and the workers it forks.

Heavy modules of this library are not imported: a killed worker must be replaced quickly.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from multiprocessing.connection import Connection
from typing import Any

READY = b"ready"
START = b"start"  # with a file descriptor: fork a worker that serves it; the answer is its process id
END = b"end "  # followed by a process id: kill that worker; the answer is the signal that ended it, 0 for none
_WARM_UP = (
    ("1/2", r"The answer is $\frac{2}{4}$."), ("x^2+1", r"\boxed{1+x^2}"), ("[0,1)", r"\boxed{[0, 1]}"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"), (r"\{1,\pi\}", r"\boxed{\pi, 1}"), ("y=2x", r"\boxed{y=2x+1}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\3\end{pmatrix}}"), ("yes", "Answer: no"),
)  # fmt: skip


def main(fd: int, memory_limit: int) -> None:
    """Serve a `VerifierPool` as its template until the socket closes; the workers end with it.

    Args:
        fd: file descriptor of the socket.
        memory_limit: maximum bytes of address space of each worker.
    """
    os.set_inheritable(fd, False)
    control = socket.socket(fileno=fd)
    workers: set[int] = set()
    try:
        _warm_up()
    except Exception as error:  # the pool raises it
        control.sendall(f"{type(error).__name__}: {error}".encode()[:900])
        return
    control.sendall(READY)
    while True:
        message, fds, _, _ = socket.recv_fds(control, 64, 1)
        if message == START:
            pid = _fork(control, fds[0], memory_limit)
            workers.add(pid)
            control.sendall(str(pid).encode())
        elif message.startswith(END):
            pid, number = int(message[len(END) :]), 0
            if pid in workers:  # not yet reaped: the process id still belongs to this worker
                number = _end(pid)
                workers.discard(pid)
            control.sendall(str(number).encode())
        else:  # closed
            for pid in workers:
                _end(pid)
            return


def _warm_up() -> None:
    """Import the parsers and use each part once: the first use is slow."""
    sys.setrecursionlimit(2000)  # deep nesting is an error, not a crash of the interpreter
    from lit_rft.rewards.verify import grade

    for gold, completion in _WARM_UP:
        grade(gold, completion)


def _fork(control: socket.socket, fd: int, memory_limit: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            control.close()
            _serve(Connection(fd), memory_limit)
        finally:
            os._exit(0)
    os.close(fd)
    return pid


def _end(pid: int) -> int:
    """Kill a worker, and return the signal that ended it: an earlier one if it was dead."""
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _serve(connection: Connection, memory_limit: int) -> None:
    """Serve requests until the pipe closes. A request that exceeds its CPU time ends the process.

    A request is JSON: seconds of CPU time, then the arguments of `_answer`.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, even inside C code
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    while True:
        try:
            seconds, *request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer = _answer(*request)
        except (Exception, MemoryError, RecursionError):  # a parser's failure is never a right answer
            answer = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(json.dumps(answer).encode())


def _answer(gold: str, completion: str | None, lenient: bool) -> Any:
    """Grade a completion; without one, read the ground truth."""
    from lit_rft.rewards.verify import grade, ground_truth_kind

    return ground_truth_kind(gold) if completion is None else grade(gold, completion, lenient)
