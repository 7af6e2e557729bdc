"""Environments behind an HTTP server that speaks JSON."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import gymnasium as gym

from lit_rft.envs.adapters.servers import ServerLease


class HttpEnv(gym.Env[str, str]):
    """Plays on a server with the endpoints ``POST /reset`` and ``POST /step``, in the form of OpenEnv's.

    (OpenEnv's own servers make a new environment for every HTTP request: use `OpenEnvEnv` with them.)

    Requests are ``{"seed": 3, "options": {...}}`` (each where it is given; `options` are merged into the object) and
    ``{"action": {"message": "go north"}}``. Answers are objects with ``observation`` (a text, or an object that has the
    text under `observation_key`), ``reward`` (null for 0) and ``done``, or gymnasium's ``terminated`` and
    ``truncated``; ``info`` may hold the keys of `StepInfo`. A server keeps one episode at a time: each environment uses
    one that no other environment of this user and machine uses, until it is closed.

    Args:
        url: of the server: ``http://127.0.0.1:8000``, with a path if the endpoints are below one; or a list of several,
            at least as many as there are parallel environments.
        action_key: the key of the action's text; null sends the text itself as ``action``.
        observation_key: the key of the observation's text, where that is an object.
        timeout: maximum seconds of one request with its answer, > 0.
        max_bytes: maximum size of an answer, > 0.

    Raises:
        ValueError: an address that is not http or https, or a limit out of range; at `reset`, what the server refuses
            with the status 400 or 422, and if all servers are in use.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        action_key: str | None = "message",
        observation_key: str = "text",
        timeout: float = 25.0,
        max_bytes: int = 1_000_000,
    ) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        for item in urls:
            if not isinstance(item, str) or not _is_address(item):
                raise ValueError(f"url must be like http://127.0.0.1:8000, got {item!r}")
        if len(set(urls)) < max(1, len(urls)):
            raise ValueError(f"url must be one server or several different ones, got {urls}")
        if not timeout > 0 or max_bytes < 1:
            raise ValueError(f"timeout and max_bytes must be > 0, got {timeout} and {max_bytes}")
        self.url, self.action_key, self.observation_key = "", action_key, observation_key
        self.timeout, self.max_bytes = timeout, max_bytes
        self._lease = ServerLease([item.rstrip("/") for item in urls])
        self._path = ""
        self._connection: http.client.HTTPConnection | None = None  # to the server in use

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
        """Close the connection, and let others use the server, which goes on."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._lease.release()

    def _connected(self) -> http.client.HTTPConnection:
        """Return a connection to the server in use, after the choice of one."""
        if self._connection is None:
            self.url = self._lease.take()
            address = urlsplit(self.url)
            self._path = address.path
            kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(str(address.hostname), address.port, timeout=self.timeout)  # follows no redirects
        return self._connection

    def _post(self, endpoint: str, content: dict[str, Any]) -> dict[str, Any]:
        connection = self._connected()
        connection.close()  # a new one each time: the server may have dropped the last
        try:
            status, body = self._exchange(connection, f"{self._path}/{endpoint}", json.dumps(content))
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(f"{self.url}/{endpoint}: {type(error).__name__}: {error}") from error
        if status != 200:
            kind = ValueError if endpoint == "reset" and status in (400, 422) else RuntimeError
            raise kind(f"{self.url}/{endpoint}: status {status}: {body[:200].decode(errors='replace')}")
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise RuntimeError(f"{self.url}/{endpoint}: expected JSON, got {body[:80]!r}") from error
        if not isinstance(answer, dict) or "observation" not in answer:
            raise RuntimeError(f"{self.url}/{endpoint}: expected an object with an observation, got {body[:80]!r}")
        return answer

    def _exchange(self, connection: http.client.HTTPConnection, path: str, content: str) -> tuple[int, bytes]:
        """Send a request; return status and body of the answer.

        The connection's own timeout is per read; a server that sends a byte now and then would never exceed it.

        Raises:
            OSError, HTTPException: no answer in time, or a wrong one.
        """
        deadline = time.monotonic() + self.timeout
        connection.connect()
        timer = threading.Timer(deadline - time.monotonic(), _shut_down, [connection.sock])
        timer.daemon = True
        timer.start()
        try:
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            connection.request("POST", path, content, headers)
            response = connection.getresponse()
            body = response.read(self.max_bytes + 1)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise self._too_late() from error
            raise
        finally:
            timer.cancel()
        if time.monotonic() >= deadline:  # the body may have been cut
            raise self._too_late()
        if len(body) > self.max_bytes:
            raise OSError(f"an answer of more than max_bytes={self.max_bytes}")
        return response.status, body

    def _too_late(self) -> TimeoutError:
        return TimeoutError(f"the answer has taken more than timeout={self.timeout} s")

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


def _is_address(url: str) -> bool:
    address = urlsplit(url)
    return address.scheme in ("http", "https") and bool(address.hostname)


def _shut_down(connection: socket.socket) -> None:
    """End all reads of a connection."""
    with contextlib.suppress(OSError):  # it has been closed meanwhile
        connection.shutdown(socket.SHUT_RDWR)
