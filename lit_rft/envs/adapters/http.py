"""Environments behind an HTTP server that speaks JSON."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import gymnasium as gym

_CHUNK = 65_536


class HttpEnv(gym.Env[str, str]):
    """Plays on a server with the endpoints ``POST /reset`` and ``POST /step``, as OpenEnv's HTTP servers have them.

    Requests are ``{"seed": 3, "options": {...}}`` (each where it is given; `options` are merged into the object) and
    ``{"action": {"message": "go north"}}``. Answers are objects with ``observation`` (a text, or an object that has the
    text under `observation_key`), ``reward`` (null for 0) and ``done``, or gymnasium's ``terminated`` and
    ``truncated``; ``info`` may hold the keys of `StepInfo`. The server keeps one episode at a time: give every worker
    a server of its own, or use one worker.

    Args:
        url: of the server: ``http://127.0.0.1:8000``, with a path if the endpoints are below one.
        action_key: the key of the action's text; null sends the text itself as ``action``.
        observation_key: the key of the observation's text, where that is an object.
        timeout: maximum seconds of one request, > 0.
        max_bytes: maximum size of an answer, > 0.

    Raises:
        ValueError: an address that is not http or https, or a limit out of range; at `reset`, what the server refuses
            with the status 400 or 422.
    """

    def __init__(
        self,
        url: str,
        action_key: str | None = "message",
        observation_key: str = "text",
        timeout: float = 25.0,
        max_bytes: int = 1_000_000,
    ) -> None:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"url must be like http://127.0.0.1:8000, got {url!r}")
        if not timeout > 0 or max_bytes < 1:
            raise ValueError(f"timeout and max_bytes must be > 0, got {timeout} and {max_bytes}")
        self.url, self.action_key, self.observation_key = url.rstrip("/"), action_key, observation_key
        self.timeout, self.max_bytes = timeout, max_bytes
        self._path = address.path.rstrip("/")
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(address.hostname, address.port, timeout=timeout)  # follows no redirects

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode on the server."""
        super().reset(seed=seed)
        answer = self._post("reset", {**({} if seed is None else {"seed": seed}), **(options or {})})
        return self._text(answer), self._info(answer)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send an action."""
        answer = self._post("step", {"action": action if self.action_key is None else {self.action_key: action}})
        truncated, terminated = bool(answer.get("truncated")), answer.get("terminated")
        if terminated is None:  # OpenEnv's `done` is either
            terminated = bool(answer.get("done")) and not truncated
        reward = answer.get("reward")
        if not isinstance(reward, int | float | None):
            raise RuntimeError(f"{self.url}/step: expected a number as reward, got {reward!r}")
        return self._text(answer), float(reward or 0.0), bool(terminated), truncated, self._info(answer)

    def close(self) -> None:
        """Close the connection; the server goes on."""
        self._connection.close()

    def _post(self, endpoint: str, content: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + self.timeout
        self._connection.close()  # a new one each time: the server may have dropped the last
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            self._connection.request("POST", f"{self._path}/{endpoint}", json.dumps(content), headers)
            response = self._connection.getresponse()
            body = self._read(response, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(f"{self.url}/{endpoint}: {type(error).__name__}: {error}") from error
        if response.status != 200:
            kind = ValueError if endpoint == "reset" and response.status in (400, 422) else RuntimeError
            raise kind(f"{self.url}/{endpoint}: status {response.status}: {body[:200].decode(errors='replace')}")
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise RuntimeError(f"{self.url}/{endpoint}: expected JSON, got {body[:80]!r}") from error
        if not isinstance(answer, dict) or "observation" not in answer:
            raise RuntimeError(f"{self.url}/{endpoint}: expected an object with an observation, got {body[:80]!r}")
        return answer

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        body = b""
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > self.max_bytes:
                raise OSError(f"an answer of more than max_bytes={self.max_bytes}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"an answer takes more than timeout={self.timeout} s")
        return body

    def _text(self, answer: dict[str, Any]) -> str:
        observation = answer["observation"]
        text = observation.get(self.observation_key) if isinstance(observation, dict) else observation
        if not isinstance(text, str):
            keys = ", ".join(observation) if isinstance(observation, dict) else type(observation).__name__
            raise RuntimeError(
                f"{self.url}: expected the text of the observation as {self.observation_key!r}, got {keys}"
            )
        return text

    def _info(self, answer: dict[str, Any]) -> dict[str, Any]:
        info = answer.get("info") or {}
        if not isinstance(info, dict):
            raise RuntimeError(f"{self.url}: expected an object as info, got {type(info).__name__}")
        return {"env": "http", **info}
