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
from lit_rft.envs.raised import describe_error, is_refusal, name_of, type_and_message

# Requests: (verb, argument), verb RESET, STEP or CLOSE. Responses: (kind, payload), with the kinds below.
RESET: Final = "reset"
STEP: Final = "step"
CLOSE: Final = "close"
READY: Final = "ready"  # the environment is ready; sent without a request
DONE: Final = "done"  # payload: the environment's result
BAD_START: Final = "bad_start"  # payload: exception raised while making the environment, its traceback as text
REFUSED: Final = "refused"  # the same, of reset's ValueError or a ContractError: another attempt would not help
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
    factory: Any = None
    try:
        factory = pickle.loads(make_env)
        env = EpisodeEnv(factory())
    except Exception as error:
        call = "importing the environment" if factory is None else f"making the environment {name_of(factory)}"
        _send(connection, BAD_START, _reported(error, call, "constructor", factory))
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
        name, called = type(env.env.unwrapped).__name__, getattr(env.env.unwrapped, verb, None)
        reported, trace = _reported(error, f"{name}.{verb}", verb, called)
        if isinstance(error, ContractError) or (verb == RESET and isinstance(error, ValueError)):
            return REFUSED, (reported, trace)
        return FAILED, (type_and_message(error) if reported is error else str(reported), trace)


def _reported(error: Exception, call: str, method: str, called: Any) -> tuple[Exception, str]:
    """Return an exception for the pool, and its traceback.

    It names the call and the place, since it is raised far from both; but refusals are for users as they are.
    """
    trace = "".join(traceback.format_exception(error))
    if not (isinstance(error, ContractError) or is_refusal(error)):
        return with_text(error, f"{call} raised {describe_error(error, method, called)}"), trace
    try:
        pickle.loads(pickle.dumps(error))
        return error, trace
    except Exception:  # any of its attributes may be in the way
        return with_text(error, type_and_message(error)), trace


def with_text(error: Exception, text: str) -> Exception:
    """Return an exception of the same type with another message, which can be sent to another process.

    Types that cannot be made from a message, or that show another one (`KeyError` adds quotes), are replaced by the
    nearest base class that can.
    """
    for kind in type(error).__mro__:
        if not issubclass(kind, Exception) or kind is Exception:
            continue
        try:
            copy = pickle.loads(pickle.dumps(kind(text)))
        except Exception:  # any constructor may be in the way
            continue
        if type(copy) is kind and str(copy) == text:
            return copy
    return RuntimeError(text)
