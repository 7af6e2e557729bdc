"""Workers of an `EnvPool`: what the pool asks and gets, and the loop that serves an environment at the other end."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any, Final, Protocol

from lit_rft.envs.episode_env import ContractError, EpisodeEnv

# Requests: (verb, argument), verb RESET, STEP or CLOSE. Answers: (kind, payload), kind one of those below.
RESET: Final = "reset"
STEP: Final = "step"
CLOSE: Final = "close"
READY: Final = "ready"  # the environment has been made; nobody asked
DONE: Final = "done"  # payload: what the environment returned
BAD_START: Final = "bad_start"  # payload: the exception that the environment could not be made for
REFUSED: Final = "refused"  # payload: the ValueError of reset, or the ContractError: trying again would not help
FAILED: Final = "failed"  # payload: message and traceback; the environment is in an unknown state


class Worker(Protocol):
    """An environment that runs elsewhere, as the pool sees it."""

    @property
    def connection(self) -> Connection:
        """The pool's end of the pipe; it reads as ended when the worker has."""

    @property
    def pid(self) -> int | None:
        """The worker's own process, the leader of the group of all that its environment starts; None for a thread."""

    def send(self, verb: str, argument: Any = None) -> None:
        """Send a request. A dead worker takes it without a word; the pipe's end says so to its reader."""

    def kill(self) -> None:
        """End the worker and everything that its environment has started, as far as it can be ended from outside."""


def serve(connection: Connection, make_env: bytes, requests: Iterable[tuple[str, Any]]) -> None:
    """Make an environment and answer requests with it, until there are no more or one of them is CLOSE.

    Args:
        connection: takes the answers; one that its other end has closed takes them without a word.
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
    with contextlib.suppress(OSError):  # nobody is there to read it: the requests end, too
        connection.send_bytes(message)


def _answer(env: EpisodeEnv, verb: str, argument: Any) -> tuple[str, Any]:
    try:
        return DONE, env.reset(argument) if verb == RESET else env.step(argument)
    except Exception as error:
        if isinstance(error, ContractError) or (verb == RESET and isinstance(error, ValueError)):
            return REFUSED, _sendable(error)
        return FAILED, (f"{type(error).__name__}: {error}", traceback.format_exc())


def _sendable(error: Exception) -> Exception:
    """The exception itself if it survives pickling, else its text in one of its built-in base classes."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        return kind(f"{type(error).__name__}: {error}")
