"""One worker of an `EnvPool`, both ends of its pipe: the process with the environment, and the pool's hold on it."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final

from lit_rft.envs.episode_env import EpisodeEnv

# Requests: (verb, argument), verb RESET, STEP or CLOSE. Answers: (kind, payload), kind one of those below.
RESET: Final = "reset"
STEP: Final = "step"
CLOSE: Final = "close"
DONE = "done"  # payload: what the environment returned
BAD_START = "bad_start"  # payload: the exception that the environment could not be made for
BAD_OPTIONS = "bad_options"  # payload: the ValueError that reset answered with
FAILED = "failed"  # payload: message and traceback; the environment is in an unknown state


class WorkerProcess:
    """A worker's process as the pool sees it: a fresh interpreter that does not import the running script.

    Args:
        make_env: pickled callable that makes the environment.

    Attributes:
        pid: its id, and the number of the process group of everything that the environment starts.
        connection: the pool's end of the pipe; it reads as ended when the process is dead.
    """

    def __init__(self, make_env: bytes) -> None:
        self.connection, far_end = Pipe()
        fd, path = far_end.fileno(), [str(entry) for entry in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from lit_rft.envs.worker import main; main({fd})"
        # A session of its own makes the process the leader of a group, and keeps Ctrl-C away from it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[fd], stdin=subprocess.DEVNULL, start_new_session=True
        )
        far_end.close()
        self.pid = self._process.pid
        with contextlib.suppress(OSError):  # died at once: the pipe's end says so to its reader
            self.connection.send_bytes(make_env)

    def send(self, verb: str, argument: Any = None) -> None:
        """Send a request. A dead process takes it without a word; the pipe's end says so to its reader."""
        with contextlib.suppress(OSError):
            self.connection.send((verb, argument))

    def kill(self) -> None:
        """End the process and everything it has started, stopped or hung as they may be."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # before wait(): until then nobody else can get the group's number
        self._process.wait()
        self.connection.close()


def main(fd: int) -> None:
    """Serve the pool at the other end of a pipe until it says close or is gone.

    Args:
        fd: file descriptor of the pipe; its first message is the pickled callable that makes the environment.
    """
    os.set_inheritable(fd, False)  # what the environment starts must not keep the pipe open
    connection = Connection(fd)
    make_env = connection.recv_bytes()
    requests: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, requests), daemon=True, name="requests").start()
    try:
        env = EpisodeEnv(pickle.loads(make_env)())
    except Exception as error:
        connection.send((BAD_START, _sendable(error)))
        return
    while (request := requests.get())[0] != CLOSE:
        answer = _serve(env, *request)
        try:
            connection.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            connection.send((FAILED, (f"the environment's answer cannot be sent: {error!r}", "")))
    env.close()


def _read(connection: Connection, requests: queue.SimpleQueue[tuple[str, Any]]) -> None:
    """Pass requests on. In a thread of its own, so that the pool's end is noticed even while the environment hangs."""
    try:
        while True:
            requests.put(connection.recv())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)  # this process and whatever the environment has started


def _serve(env: EpisodeEnv, verb: str, argument: Any) -> tuple[str, Any]:
    try:
        return DONE, env.reset(argument) if verb == RESET else env.step(argument)
    except Exception as error:
        if verb == RESET and isinstance(error, ValueError):
            return BAD_OPTIONS, _sendable(error)
        return FAILED, (f"{type(error).__name__}: {error}", traceback.format_exc())


def _sendable(error: Exception) -> Exception:
    """The exception itself if it survives pickling, else its text in one of its built-in base classes."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        return kind(f"{type(error).__name__}: {error}")
