"""Workers of an `EnvPool`: requests and responses, and the loop that serves an environment."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any, Final, Protocol

from lit_rft.envs.contract import ContractError
from lit_rft.envs.episode_env import EpisodeEnv

# Requests: (verb, argument), verb RESET, STEP or CLOSE. Responses: (kind, payload), with the kinds below.
RESET: Final = "reset"
STEP: Final = "step"
CLOSE: Final = "close"
READY: Final = "ready"  # the environment is ready; sent without a request
DONE: Final = "done"  # payload: the environment's result
BAD_START: Final = "bad_start"  # payload: the exception raised while making the environment
REFUSED: Final = "refused"  # payload: reset's ValueError, or a ContractError: another attempt would not help
FAILED: Final = "failed"  # payload: message and traceback; the environment is in an unknown state


class Worker(Protocol):
    """The pool's view of an environment that runs elsewhere."""

    @property
    def connection(self) -> Connection:
        """The pool's end of the pipe; it reads as ended after the worker's end."""

    @property
    def pid(self) -> int | None:
        """The worker's process, leader of the group of all that its environment starts; None for a thread."""

    def send(self, verb: str, argument: Any = None) -> None:
        """Send a request. A dead worker raises no error here; its pipe ends."""

    def kill(self) -> None:
        """End the worker and everything that its environment has started, as far as possible from outside."""


def serve(connection: Connection, make_env: bytes, requests: Iterable[tuple[str, Any]]) -> None:
    """Make an environment and serve requests with it, until there are no more or one of them is CLOSE.

    Args:
        connection: for the responses; those to a closed connection are dropped.
        make_env: pickled callable that makes the environment.
        requests: verbs with their arguments.
    """
    try:
        env = EpisodeEnv(pickle.loads(make_env)())
    except Exception as error:
        _send(connection, BAD_START, _sendable(error))
        return
    _send(connection, READY, None)
    try:
        for verb, argument in requests:
            if verb == CLOSE:
                break
            _send(connection, *_answer(env, verb, argument))
    finally:
        env.close()


def _send(connection: Connection, kind: str, payload: Any) -> None:
    try:
        message = pickle.dumps((kind, payload), pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        message = pickle.dumps((FAILED, (f"the environment's answer cannot be sent: {error!r}", "")))
    with contextlib.suppress(OSError):  # the reader is gone: the requests end as well
        connection.send_bytes(message)


def _answer(env: EpisodeEnv, verb: str, argument: Any) -> tuple[str, Any]:
    try:
        return DONE, env.reset(argument) if verb == RESET else env.step(argument)
    except Exception as error:
        if isinstance(error, ContractError) or (verb == RESET and isinstance(error, ValueError)):
            return REFUSED, _sendable(error)
        return FAILED, (f"{type(error).__name__}: {error}", traceback.format_exc())


def _sendable(error: Exception) -> Exception:
    """Return the exception if it survives pickling, else its text in one of its built-in base classes."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        return kind(f"{type(error).__name__}: {error}")
