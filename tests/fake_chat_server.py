"""A small OpenAI-compatible server as a process of its own: `python fake_chat_server.py` prints its port.

The model's name in a request says how it is answered; `GET /requests` gives all requests so far.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REQUESTS: list[dict[str, Any]] = []


def completion(text: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def answer(content: dict[str, Any], headers: Any) -> tuple[int, Any, dict[str, str]]:
    """Status, body (text or JSON) and further headers."""
    model, number = content["model"], sum(r["body"]["model"] == content["model"] for r in REQUESTS)
    name, _, argument = model.partition(":")
    if name == "flaky" and number <= int(argument):
        return 503, "busy", {"Retry-After": "0"}
    if name == "status":
        return int(argument), f"refused {headers.get('Authorization')}", {}
    if name == "malformed":
        return 200, ("{", "[]", '{"choices": []}', '{"choices": [{"message": {"content": 3}}]}')[int(argument)], {}
    if name == "redirect":
        return 302, "", {"Location": f"http://127.0.0.1:{argument}/v1/stolen"}
    if name == "uncounted":
        return 200, {**completion("go right"), "usage": None}, {}
    if name == "cut":
        return 200, completion("go ri", "length"), {}
    if name == "silent":
        return 200, completion(None), {}
    return 200, completion(argument.replace("|", "\n") or "go right"), {}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._send(200, json.dumps(REQUESTS).encode(), {})

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        REQUESTS.append({"path": self.path, "key": self.headers.get("Authorization"), "body": content})
        if content["model"] == "dead":
            self.connection.close()
            return
        if content["model"] == "slow":
            time.sleep(30)
        status, body, headers = answer(content, self.headers)
        self._send(status, (body if isinstance(body, str) else json.dumps(body)).encode(), headers, content["model"])

    def _send(self, status: int, body: bytes, headers: dict[str, str], model: str = "") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        for byte in body:
            if model == "dripping":  # each byte restarts the time limit of a socket
                time.sleep(0.2)
            self.wfile.write(bytes([byte]))

    def log_message(self, *_: Any) -> None:
        pass


class FakeChatServer:
    """The server's process and its address."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port, self.url = process, port, f"http://127.0.0.1:{port}/v1"

    def requests(self, model: str = "") -> list[dict[str, Any]]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/requests", timeout=30) as response:
            requests: list[dict[str, Any]] = json.loads(response.read())
        return [request for request in requests if not model or request["body"]["model"] == model]


@contextlib.contextmanager
def chat_server() -> Iterator[FakeChatServer]:
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield FakeChatServer(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
