"""A client of OpenAI-compatible servers (`/chat/completions`), for acting only.

Requests have a time limit and bounded retries with growing pauses. The key is read from an environment variable for
each request; it is in no settings, record, log or error message.
"""

import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_MAX_BYTES = 16 * 2**20  # of a response
_MAX_PAUSE = 60.0  # seconds
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class ChatServerError(RuntimeError):
    """The server refused a request, or did not answer it within the limits."""


@dataclass
class ChatServerSettings:
    """An OpenAI-compatible server whose model acts in place of the policy.

    Args:
        url: of its API, up to `/v1`.
        model: the server's name of the model.
        levels: levels of the agent that it samples; null for all.
        key_variable: environment variable with the key; null for a server without a key.
        timeout: maximum seconds per attempt, > 0.
        retries: maximum number of further attempts after a failed one, >= 0.
        pause: seconds before the first further attempt, > 0; doubled after each, up to a minute.
        parallel_requests: maximum number of requests at the same time, > 0.
        body: further fields of the requests, which override others; null removes one.
    """

    url: str = "http://127.0.0.1:8000/v1"
    model: str = ""
    levels: list[str] | None = None
    key_variable: str | None = None
    timeout: float = 120.0
    retries: int = 4
    pause: float = 1.0
    parallel_requests: int = 16
    body: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("chat_server.url must be http(s)://HOST/PATH, without user, key or query")
        if self.key_variable is not None and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError(f"chat_server.url must begin with https:// to send a key, got {self.url!r}")
        if not self.model:
            raise ValueError("chat_server.model must be the server's name of a model, got none")
        for name in ("timeout", "pause", "parallel_requests"):
            if not getattr(self, name) > 0:
                raise ValueError(f"chat_server.{name} must be > 0, got {getattr(self, name)}")
        if self.retries < 0:
            raise ValueError(f"chat_server.retries must be >= 0, got {self.retries}")


@dataclass(frozen=True)
class ChatAnswer:
    """A completion: its text, and whether it ended before the length limit."""

    text: str
    finished: bool


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirections, which would send the key to another address."""

    def redirect_request(self, *args: Any) -> None:
        return None


class ChatServer:
    """A client of an OpenAI-compatible server.

    Attributes:
        usage: cost so far: answered `requests`, `retries` of failed ones, `prompt_tokens` and `completion_tokens` as
            the server counts them, and the number of answers without such counts (`uncounted`).

    Args:
        settings: of the server.
    """

    def __init__(self, settings: ChatServerSettings) -> None:
        self.settings = settings
        self.usage = dict.fromkeys(("requests", "retries", "prompt_tokens", "completion_tokens", "uncounted"), 0)
        self._lock = threading.Lock()
        host = urllib.parse.urlsplit(settings.url).hostname
        proxies = [urllib.request.ProxyHandler({})] if host in _LOOPBACK else []
        self._opener = urllib.request.build_opener(_NoRedirect(), *proxies)

    def complete(
        self, messages: Sequence[Mapping[str, str]], *, stopped: Callable[[], bool] = lambda: False, **options: Any
    ) -> ChatAnswer:
        """Complete a conversation.

        Args:
            messages: with `role` and `content`; the last one is the user's.
            stopped: true after the end of the sampling: no further attempt is made.
            **options: further fields of the request, such as `temperature`.

        Raises:
            ChatServerError: The server refuses the request, or has not answered after all attempts.
            ValueError: The key's environment variable is not set, or holds no valid key.
        """
        body = {"model": self.settings.model, "messages": list(messages), "n": 1, **options, **self.settings.body}
        data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        for attempt in range(self.settings.retries + 1):
            try:
                return self._read(self._send(data))
            except _Failure as failure:
                if not failure.temporary or attempt == self.settings.retries:
                    raise ChatServerError(
                        self._without_key(f"{self._url}: {failure} (attempt {attempt + 1})")
                    ) from None
                self._wait(attempt, failure.retry_after)
                if stopped():
                    raise ChatServerError(f"{self._url}: stopped after attempt {attempt + 1}") from None
        raise AssertionError

    @property
    def _url(self) -> str:
        return f"{self.settings.url.rstrip('/')}/chat/completions"

    def _wait(self, attempt: int, retry_after: float | None) -> None:
        with self._lock:
            self.usage["retries"] += 1
        pause = self.settings.pause * 2**attempt * random.uniform(0.75, 1.25)
        time.sleep(min(_MAX_PAUSE, max(pause, retry_after or 0.0)))

    def _key(self) -> str | None:
        name = self.settings.key_variable
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(f"expected a key in the environment variable {name}, got none or one that is no key")
        return key

    def _without_key(self, text: str) -> str:
        key = self._key()
        return text if key is None else text.replace(key, "***")

    def _send(self, data: bytes) -> bytes:
        """Return the response's body.

        Raises:
            _Failure: There is none, or it is an error.
        """
        key = self._key()
        headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
        request = urllib.request.Request(self._url, data, headers)
        deadline = time.monotonic() + self.settings.timeout
        try:
            with self._opener.open(request, timeout=self.settings.timeout) as response:
                return _read_body(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(2000).decode(errors="replace")
            raise _Failure(f"status {error.code}: {text}", error.code in _RETRIED, _retry_after(error)) from None
        except (OSError, HTTPException) as error:
            raise _Failure(f"no response within {self.settings.timeout:g} s: {error!r}", True) from None

    def _read(self, data: bytes) -> ChatAnswer:
        try:
            answer = json.loads(data)
            (choice,) = answer["choices"]
            content = choice["message"].get("content")
            text = "" if content is None else content  # a refusal or a tool call
            if not isinstance(text, str):
                raise TypeError(f"content is {type(text).__name__}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            shown = data[:200].decode(errors="replace")
            raise _Failure(f"expected a chat completion, got {shown!r} ({error})", True) from None
        self._count(answer.get("usage"))
        return ChatAnswer(text, choice.get("finish_reason") != "length")

    def _count(self, usage: Any) -> None:
        names = ("prompt_tokens", "completion_tokens")
        known = isinstance(usage, dict) and all(type(usage.get(name)) is int for name in names)
        with self._lock:
            self.usage["requests"] += 1
            self.usage["uncounted"] += not known
            for name in names if known else ():
                self.usage[name] += usage[name]


class _Failure(Exception):
    """A failed attempt."""

    def __init__(self, message: str, temporary: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.temporary, self.retry_after = temporary, retry_after


def _read_body(response: Any, deadline: float) -> bytes:
    """Read a body in pieces: each one restarts the socket's time limit, which alone would not end a slow response."""
    data = b""
    while piece := response.read1(65536):
        data += piece
        if time.monotonic() > deadline:
            raise TimeoutError("the response is too slow")
        if len(data) > _MAX_BYTES:
            raise OSError(f"the response has more than {_MAX_BYTES} bytes")
    return data


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Return the seconds of a Retry-After header; None without one, or for a date."""
    value = error.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None
