"""Environments of other packages: against the real package, and a real server."""

import contextlib
import functools
import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from lit_rft.envs import EnvPool, EpisodeSpec
from lit_rft.envs.adapters import HttpEnv, ReasoningGymEnv
from lit_rft.envs.adapters.servers import ServerLease


class Handler(BaseHTTPRequestHandler):
    requests: list[tuple[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.path, content))
        answer: Any = {"observation": {"text": "Hall."}, "reward": None, "done": False}
        if self.path == "/step":
            action = content["action"]["message"]
            answer = {"observation": f"You {action}.", "reward": 0.5, "done": True, "info": {"score": 2}}
            ends = {"cut": {"done": True, "truncated": True}, "null": {"done": True, "terminated": None}}
            answer |= ends.get(action, {})
            answer = {"big": {"observation": "x" * 9000}, "list": [1], "number": {"observation": 3}}.get(action, answer)
        body = json.dumps(answer).encode()
        self.send_response(422 if content.get("seed") == 9 else 500 if content.get("seed") == 8 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_http_server_is_played(url: str) -> None:
    env = HttpEnv(url)
    Handler.requests.clear()
    assert env.reset(seed=3, options={"level": 1}) == ("Hall.", {"env": "http"})
    assert env.step("wait") == ("You wait.", 0.5, True, False, {"env": "http", "score": 2})
    assert env.step("cut")[2:4] == (False, True)  # `done` by a time limit is no end of the task
    assert env.step("null")[2:4] == (True, False)
    assert Handler.requests[:2] == [("/reset", {"seed": 3, "level": 1}), ("/step", {"action": {"message": "wait"}})]


def test_wrong_answers_of_a_server(url: str) -> None:
    env = HttpEnv(url, max_bytes=5000)
    for action, message in (("big", "more than max_bytes=5000"), ("list", "an object"), ("number", "the text")):
        with pytest.raises(RuntimeError, match=message):
            env.step(action)
    with pytest.raises(ValueError, match="status 422"):
        env.reset(seed=9)
    with pytest.raises(RuntimeError, match="status 500"):
        env.reset(seed=8)
    env.close()
    for wrong in ("file:///etc/passwd", ["http://a", "b"], [3]):
        with pytest.raises(ValueError, match="url must be like"):
            HttpEnv(wrong)  # type: ignore[arg-type]
    for wrong in ([], ["http://a", "http://a"]):
        with pytest.raises(ValueError, match="one server or several different ones"):
            HttpEnv(wrong)


@pytest.mark.parametrize("part", ["status line", "headers", "body"])
def test_the_time_limit_is_for_the_whole_answer(part: str) -> None:
    """Of a server that sends byte after byte; without a limit over all of them its answer would come to an end."""
    body = json.dumps({"observation": "Hall."}).encode()
    pieces = [b"HTTP/1.1 200 OK\r\n", f"Content-Length: {len(body)}\r\n\r\n".encode(), body]
    slow = ["status line", "headers", "body"].index(part)

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):  # the client hangs up
            connection.recv(65536)
            for number, piece in enumerate(pieces):
                for position in range(len(piece)):
                    connection.sendall(piece[position : position + 1])
                    time.sleep(0.1 if number == slow else 0.0)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        env = HttpEnv(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5)
        with pytest.raises(RuntimeError, match=r"reset: TimeoutError: the answer has taken more than timeout=0\.5 s"):
            env.reset()
        thread.join()


def test_a_server_may_be_restarted_between_requests() -> None:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_port
    env = HttpEnv(f"http://127.0.0.1:{port}")
    for _ in range(2):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert env.reset()[0] == "Hall." and env.step("wait")[0] == "You wait."
        server.shutdown()
        server.server_close()
        with pytest.raises(RuntimeError, match="ConnectionRefusedError"):
            env.step("wait")
        server = HTTPServer(("127.0.0.1", port), Handler)
    server.server_close()
    env.close()
    env.close()


@contextlib.contextmanager
def servers(number: int) -> Iterator[list[str]]:
    """Servers that say in their observations which one they are."""
    with contextlib.ExitStack() as stack:
        urls = []
        for index in range(number):
            handler = type("Named", (Handler,), {"name": index})
            server = stack.enter_context(HTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            urls.append(f"http://127.0.0.1:{server.server_port}")
        yield urls


def test_each_environment_has_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerLease.take, "__defaults__", (0.0,))
    with servers(2) as urls:
        first, second, third = (HttpEnv([f"{urls[0]}/", urls[1]]) for _ in range(3))
        for env in (first, second):
            assert env.reset()[0] == env.reset()[0] == "Hall."
        assert [first.url, second.url] == urls
        with pytest.raises(ValueError, match=f"expected a free server for each environment, got url {urls[0]}, "):
            third.reset()
        with pytest.raises(ValueError, match="at most 1"):
            HttpEnv(urls[0]).reset()  # by itself as well: two episodes on one server would be mixed
        first.close()
        assert third.reset()[0] == "Hall." and third.url == urls[0]
        second.close()
        third.close()


def test_the_server_of_a_killed_worker_is_free_again() -> None:
    """While a waiting environment takes it."""
    with servers(1) as urls:
        code = f"from lit_rft.envs.adapters import HttpEnv\nenv = HttpEnv({urls[0]!r})\nenv.reset()\n"
        code += "print(1, flush=True)\ninput()"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        with pytest.raises(ValueError, match="in use by others"):
            ServerLease(urls).take(0.0)
        threading.Timer(0.2, process.kill).start()
        env = HttpEnv(urls)
        assert env.reset()[0] == "Hall."
        process.communicate()
        env.close()


def test_a_pool_plays_on_several_servers() -> None:
    with servers(2) as urls, EnvPool(functools.partial(HttpEnv, urls), 2) as pool:
        for number in range(4):
            pool.submit(EpisodeSpec(str(number)))
        ended = []
        while pool.outstanding:
            for event in pool.wait():
                if event.kind == "reset":
                    pool.step(event.worker, "wait")
                else:
                    assert event.kind == "step"
                    ended.append(event.job.id)
                    pool.finish(event.worker)
        assert sorted(ended) == ["0", "1", "2", "3"]


def test_the_server_of_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    (tmp_path / "my_envs.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    block = page[page.index("    import json\n    import sys\n") : page.index("\nIt plays one episode at a time")]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (tmp_path / "my_server.py").write_text(textwrap.dedent(block))
    process = subprocess.Popen([sys.executable, "my_server.py", str(port)], cwd=tmp_path)
    try:
        env = HttpEnv(f"http://127.0.0.1:{port}")
        observation, info = retry(env.reset, {"number": 3})
        assert (observation, info["admissible"]) == ("Guess a number from 0 to 3.", ["0", "1", "2", "3"])
        assert [env.step(action)[:3] for action in ("1", "3")] == [("not 1", 0.0, False), ("right", 1.0, True)]
        env.close()
    finally:
        process.kill()
        process.wait()


def retry(reset: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Until the server has started."""
    end = time.monotonic() + 60
    while True:
        try:
            return reset(seed=0, options=options)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def test_a_problem_of_reasoning_gym_is_an_episode() -> None:
    pytest.importorskip("reasoning_gym")
    env = ReasoningGymEnv("basic_arithmetic")
    question, _ = env.reset(seed=1)
    assert env.reset(seed=1)[0] == question != env.reset(seed=2)[0]
    assert env.reset(seed=1, options={"task": "sums", "seed": 1})[0] == question  # a suite's row
    _, reward, terminated, _, info = env.step(f" {env.entry['answer']} ")
    assert (reward, terminated, info["success"]) == (1.0, True, True)
    assert env.step("no idea")[1] < 1.0
    with pytest.raises(ValueError, match="unknown task 'chess'"):
        ReasoningGymEnv("chess")
    with pytest.raises(ValueError, match="refuses the settings"):
        env.reset(seed=1, options={"min_terms": -1})


@pytest.mark.parametrize(
    ("task", "answer"), [("prime_factorization", "no idea"), ("boxnet", "[1]"), ("coin_flip", "1e999")]
)
def test_a_malformed_answer_has_the_score_0(task: str, answer: str) -> None:
    pytest.importorskip("reasoning_gym")
    env = ReasoningGymEnv(task)
    env.reset(seed=1)
    with pytest.raises((ValueError, AttributeError, OverflowError)):
        env.dataset.score_answer(answer, env.entry)
    assert env.step(answer) == ("", 0.0, True, False, {"score": 0.0, "success": False})


def test_tasks_whose_scorer_evaluates_answers_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    for task in ("n_queens", "string_insertion", "spiral_matrix", "puzzle24", "countdown", "simple_integration"):
        with pytest.raises(ValueError, match=f"the scorer of '{task}' evaluates answers as Python"):
            ReasoningGymEnv(task)
    canary = tmp_path / "canary"
    env = ReasoningGymEnv("n_queens", evaluate_answers=True)
    env.reset(seed=1)
    env.step(f"__import__('pathlib').Path({str(canary)!r}).touch()")
    assert canary.exists()  # why they are refused
