"""HTTP requests to a server of this run: JSON in, text out, without proxy, and abortable."""

import contextlib
import http.client
import json
import socket
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any


class ServerRefusal(RuntimeError):
    """The server rejected a request (HTTP 4xx), and would reject it again.

    Args:
        message: with the server's response.
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ServerUnavailable(RuntimeError):
    """No response, or an error of the server's own (HTTP 5xx).

    Args:
        message: of the failure.
        status: of HTTP; None without a response.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ServerConnection:
    """Sends requests, each on a connection of its own; several threads may.

    Args:
        url: of the server. No proxy is used: the server is local and receives paths.
        timeout: maximum seconds without a byte of the response.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self._parts = urllib.parse.urlsplit(self.url)
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def request(self, path: str, content: Mapping[str, Any] | None = None, timeout: float | None = None) -> str:
        """Send a request, POST with content and GET without, and return the response's body.

        Raises:
            ServerRefusal: HTTP 4xx or a redirection.
            ServerUnavailable: HTTP 5xx, or no response.
        """
        url = self.url + path
        try:
            with self._connection(self.timeout if timeout is None else timeout) as connection:
                body = None if content is None else json.dumps(content).encode()
                connection.request(
                    "GET" if body is None else "POST", self._parts.path + path, body,
                    {"Content-Type": "application/json"},
                )  # fmt: skip
                response = connection.getresponse()
                text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnavailable(f"no response from {url} ({error or type(error).__name__})") from error
        if response.status >= 500:
            raise ServerUnavailable(f"{url} failed ({response.status}): {text[:2000]}", response.status)
        if response.status >= 300:
            raise ServerRefusal(f"the server rejected {url} ({response.status}): {text[:2000]}", response.status)
        return text

    @contextlib.contextmanager
    def _connection(self, timeout: float) -> Iterator[http.client.HTTPConnection]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=timeout)
        with self._lock:
            self._open.add(connection)
        try:
            yield connection
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def abort(self) -> None:
        """Let all requests in progress fail at once; the server then drops them."""
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):  # the server may have closed it
                        connection.sock.shutdown(socket.SHUT_RDWR)
