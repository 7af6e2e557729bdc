"""Environments behind an OpenEnv server (github.com/meta-pytorch/OpenEnv)."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any
from urllib.parse import urlsplit

import gymnasium as gym

from lit_rft.envs.base import StepInfo
from lit_rft.envs.contract import ContractError

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


class OpenEnvEnv(gym.Env[str, str]):
    """Plays on an OpenEnv server over its WebSocket endpoint ``/ws``, where each connection is a session.

    (The server's HTTP endpoints make a new environment for every request, and cannot play episodes of several steps.)
    Start the server with as many sessions (``max_concurrent_envs``) as there are parallel environments.

    The options of `reset` go to the environment's `reset`, together with the seed. The action's text is its field
    `action_key`; the text of an observation is the observation's field `observation_key`. Metadata of the observation
    with the names of `StepInfo` become the info, and ``truncated`` tells which kind of end ``done`` is.

    An action with a text that the server's action class rejects (too long, for example) counts as invalid.

    Args:
        url: of the server: ``http://127.0.0.1:8000``.
        action_key: the field of the action's text.
        observation_key: the field of the observation's text.
        action_fields: further fields of every action.
        timeout: maximum seconds of one call, > 0.
        max_bytes: maximum size of an answer, > 0.

    Raises:
        ImportError: websockets is not installed (lit-rft[openenv]).
        ValueError: an address that is not http, https, ws or wss, or a limit out of range; at `reset`, options that the
            server rejects.
    """

    def __init__(
        self,
        url: str,
        action_key: str = "message",
        observation_key: str = "text",
        action_fields: dict[str, Any] | None = None,
        timeout: float = 25.0,
        max_bytes: int = 1_000_000,
    ) -> None:
        try:
            import websockets.exceptions
            import websockets.sync.client
        except ImportError as error:
            raise ImportError("this environment needs websockets: pip install 'lit-rft[openenv]'") from error
        address = urlsplit(url)
        if address.scheme not in _SCHEMES or not address.hostname:
            raise ValueError(f"url must be like http://127.0.0.1:8000, got {url!r}")
        if not timeout > 0 or max_bytes < 1:
            raise ValueError(f"timeout and max_bytes must be > 0, got {timeout} and {max_bytes}")
        self.url = f"{_SCHEMES[address.scheme]}://{address.netloc}{address.path.rstrip('/')}/ws"
        self.action_key, self.observation_key = action_key, observation_key
        self.action_fields = dict(action_fields or {})
        self.timeout, self.max_bytes = timeout, max_bytes
        self._connect: Any = websockets.sync.client.connect
        self._closed_error = websockets.exceptions.ConnectionClosed
        self._errors = (OSError, websockets.exceptions.WebSocketException)
        self._session: Any = None
        self._exit = contextlib.ExitStack()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode, in this environment's session or in a new one."""
        super().reset(seed=seed)
        content = {**({} if seed is None else {"seed": seed}), **(options or {})}
        fresh = self._session is None
        try:
            answer = self._ask("reset", content)
        except self._closed_error as error:
            if fresh:
                raise RuntimeError(f"{self.url}: the server closed the connection: {error}") from error
            answer = self._ask("reset", content)  # the server has been restarted since the last episode
        if (message := _rejection(answer)) is not None:
            raise ValueError(f"{self.url}: reset was rejected: {message}")
        return self._text(answer), self._info(answer)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send an action.

        Raises:
            RuntimeError: no episode is in progress, or the session has failed.
            ContractError: the server's actions have other fields.
        """
        if self._session is None:
            raise RuntimeError("no episode is being played: call reset first")
        try:
            answer = self._ask("step", {**self.action_fields, self.action_key: action})
        except self._closed_error as error:
            raise RuntimeError(f"{self.url}: the server closed the connection: {error}") from error
        if (message := _rejection(answer)) is not None:
            if any(error.get("type") in ("missing", "extra_forbidden") for error in answer["errors"]):
                raise ContractError(f"{self.url}: set action_key and action_fields to the server's action: {message}")
            return message, 0.0, False, False, {"env": "openenv", "valid": False}
        reward, done = answer.get("reward"), bool(answer.get("done"))
        if not isinstance(reward, int | float | None):
            raise RuntimeError(f"{self.url}: expected a number as reward, got {reward!r}")
        truncated = done and bool(_metadata(answer).get("truncated"))
        return self._text(answer), float(reward or 0.0), done and not truncated, truncated, self._info(answer)

    def close(self) -> None:
        """End the session; the server goes on."""
        self._session = None
        self._exit.close()

    def _ask(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        """Send a message and return the data of the answer: an observation, or a rejection.

        Raises:
            ConnectionClosed: the connection is closed, without an explanation by the server.
            RuntimeError: any other failure.
        """
        deadline = time.monotonic() + self.timeout
        try:
            if self._session is None:
                limits = {"open_timeout": self.timeout, "close_timeout": 1.0, "max_size": self.max_bytes}
                self._session = self._exit.enter_context(self._connect(self.url, **limits))
            with contextlib.suppress(self._closed_error):  # a server without room explains and closes at once
                self._session.send(json.dumps({"type": kind, "data": content}))
            message = json.loads(self._session.recv(timeout=max(deadline - time.monotonic(), 0.0)))
        except self._closed_error:
            self.close()
            raise
        except (*self._errors, ValueError) as error:
            self.close()
            raise RuntimeError(f"{self.url}: {kind}: {type(error).__name__}: {error}") from error
        data = message.get("data") if isinstance(message, dict) else None
        if isinstance(data, dict) and message.get("type") == "observation" and "observation" in data:
            return data
        if isinstance(data, dict) and data.get("code") == "VALIDATION_ERROR" and isinstance(data.get("errors"), list):
            return data
        self.close()
        reason = f"{data.get('code')}: {data.get('message')}" if isinstance(data, dict) else repr(message)[:200]
        raise RuntimeError(f"{self.url}: {kind}: {reason}")

    def _text(self, answer: dict[str, Any]) -> str:
        observation = answer["observation"]
        text = observation.get(self.observation_key) if isinstance(observation, dict) else None
        if not isinstance(text, str):
            fields = ", ".join(observation) if isinstance(observation, dict) else type(observation).__name__
            raise ContractError(
                f"{self.url}: expected the text of the observation in its field {self.observation_key!r} "
                f"(observation_key), got {fields}"
            )
        return text

    def _info(self, answer: dict[str, Any]) -> dict[str, Any]:
        metadata = _metadata(answer)
        return {"env": "openenv", **{key: metadata[key] for key in StepInfo.__annotations__ if key in metadata}}


def _metadata(answer: dict[str, Any]) -> dict[str, Any]:
    metadata = answer.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _rejection(answer: dict[str, Any]) -> str | None:
    """Return the server's reasons for rejecting a message; None if it has accepted it."""
    if "errors" not in answer or "observation" in answer:
        return None
    reasons = [f"{'.'.join(map(str, error.get('loc', ())))}: {error.get('msg')}" for error in answer["errors"]]
    return "; ".join(reasons)
