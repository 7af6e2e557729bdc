"""Environments of OpenEnv: its own server in a process, and servers of its protocol that fail."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lit_rft.envs import ContractError, GymSuite, check_env
from lit_rft.envs.adapters import HttpEnv, OpenEnvEnv

websockets = pytest.importorskip("websockets")

GUESS = {"observation": {"text": "Guess."}, "reward": None, "done": False}


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def openenv_server(port: int) -> Iterator[str]:
    """OpenEnv's server, with room for two sessions."""
    pytest.importorskip("openenv.core.env_server")
    program = str(Path(__file__).with_name("openenv_server.py"))
    with subprocess.Popen([sys.executable, program, str(port)]) as process:
        try:
            while True:
                assert process.poll() is None, "the server has ended"
                try:
                    socket.create_connection(("127.0.0.1", port), 1.0).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.mark.processes
def test_openenv_itself_is_played() -> None:
    port = free_port()
    with openenv_server(port) as url:
        suite = GymSuite(OpenEnvEnv, {"url": url}, step_limit=5)
        report = check_env(suite, episodes=3)
        assert not report.errors and report.repeatable and set(report.lengths) == {3}

        first, second, third = (OpenEnvEnv(url) for _ in range(3))
        assert first.reset(seed=2) == ("Guess a number from 0 to 3.", {"env": "openenv"})
        assert second.reset(options={"number": 3})[0] == "Guess a number from 0 to 3."
        assert first.step("3") == ("wrong", 0.0, False, False, {"env": "openenv", "metrics": {"guesses": 1}})
        assert second.step("3")[:4] == ("right", 1.0, True, False)  # a session of its own
        text, reward, *ends, info = first.step("x" * 21)  # which the server's action does not admit
        assert "message: String should have at most 20" in text
        assert (reward, ends, info["valid"]) == (0.0, [False, False], False)
        first.step("0")
        assert first.step("1")[:4] == ("wrong", 0.0, False, True)  # the third guess was the last
        with pytest.raises(RuntimeError, match="reset: CAPACITY_REACHED"):
            third.reset()
        with pytest.raises(RuntimeError, match="step: EXECUTION_ERROR: a bug"):
            first.step("crash")
        with pytest.raises(RuntimeError, match="call reset first"):
            first.step("0")
        second.reset()
        for keys, message in (
            ({"action_key": "text"}, "set action_key and action_fields to .* message: Field required"),
            ({"action_fields": {"speed": 3}}, "speed: Extra inputs"),
        ):
            other = OpenEnvEnv(url, **keys)
            other.reset()
            with pytest.raises(ContractError, match=message):
                other.step("1")
            other.close()
        with pytest.raises(ContractError, match=r"in its field 'output' \(observation_key\), got metadata, text"):
            OpenEnvEnv(url, observation_key="output").reset()
        web = HttpEnv(url)  # OpenEnv's HTTP endpoints: the next request has another environment
        assert web.reset(seed=2)[0] == "Guess a number from 0 to 3."
        with pytest.raises(RuntimeError, match="status 500"):
            web.step("2")
    with pytest.raises(RuntimeError, match="closed the connection"):
        second.step("1")
    with pytest.raises(RuntimeError, match="ConnectionRefusedError"):
        second.reset()
    with openenv_server(port):
        assert second.reset(seed=1)[0] == "Guess a number from 0 to 3."
        assert second.step("1")[1] == 1.0
        second.close()


@contextmanager
def protocol_server(answer: Callable[[Any, dict[str, Any]], None]) -> Iterator[str]:
    """A server whose `answer` gets the connection and each message."""
    from websockets.sync.server import serve

    def handle(connection: Any) -> None:
        for message in connection:
            answer(connection, json.loads(message))

    with serve(handle, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/game"
        server.shutdown()


def observation(data: dict[str, Any]) -> str:
    return json.dumps({"type": "observation", "data": data})


def test_messages_and_sessions() -> None:
    seen: list[Any] = []

    def answer(connection: Any, message: dict[str, Any]) -> None:
        seen.append((connection.request.path, id(connection), message))
        metadata = {"score": 2, "admissible": ["up"], "truncated": False, "speed": 1}
        connection.send(observation({**GUESS, "reward": 0.5, "done": message["type"] == "step", "metadata": metadata}))

    with protocol_server(answer) as url:
        env = OpenEnvEnv(url, "command", action_fields={"speed": 2})
        info = {"env": "openenv", "score": 2, "admissible": ["up"]}
        assert env.reset(seed=3, options={"level": 1}) == ("Guess.", info)
        assert env.step("up") == ("Guess.", 0.5, True, False, info)
        env.reset()
        env.close()
        env.reset()
        env.close()
        env.close()
    paths, connections, messages = zip(*seen, strict=True)
    assert set(paths) == {"/game/ws"} and messages == (
        {"type": "reset", "data": {"seed": 3, "level": 1}},
        {"type": "step", "data": {"speed": 2, "command": "up"}},
        {"type": "reset", "data": {}},
        {"type": "reset", "data": {}},
    )
    assert connections[0] == connections[1] == connections[2]  # one session for several episodes


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("[1]", r"\[1\]"),
        ("{", "JSONDecodeError"),
        (json.dumps({"type": "observation", "data": {}}), "None: None"),
        (json.dumps({"type": "error", "data": {"code": "FACTORY_ERROR", "message": "no"}}), "FACTORY_ERROR: no"),
        (observation({**GUESS, "observation": {"text": "x" * 3000}}), "closed the connection: .*1009"),
        (observation({**GUESS, "reward": "much"}), "a number as reward, got 'much'"),
    ],
    ids=["list", "no json", "empty", "error", "big", "reward"],
)
def test_wrong_answers_of_a_server(reply: str, message: str) -> None:
    def answer(connection: Any, request: dict[str, Any]) -> None:
        connection.send(observation(GUESS) if request["type"] == "reset" else reply)

    with protocol_server(answer) as url:
        env = OpenEnvEnv(url, max_bytes=2000)
        env.reset()
        with pytest.raises(RuntimeError, match=message):
            env.step("up")
        env.reset()  # in a new session where the last one is unusable
        env.close()


def test_options_that_are_rejected_end_the_run() -> None:
    errors = [{"loc": ["seed"], "msg": "not a number", "type": "int_type"}]
    rejection = {"type": "error", "data": {"code": "VALIDATION_ERROR", "message": "Invalid message", "errors": errors}}
    with (
        protocol_server(lambda connection, message: connection.send(json.dumps(rejection))) as url,
        pytest.raises(ValueError, match="reset was rejected: seed: not a number"),
    ):
        OpenEnvEnv(url).reset()


def test_the_time_limit_is_for_the_whole_answer() -> None:
    """Of a server that sends fragment after fragment; without a limit over all of them it would come to an end."""

    def answer(connection: Any, message: dict[str, Any]) -> None:
        text = observation(GUESS)

        def drip() -> Iterator[str]:
            for character in text:
                time.sleep(0.05)
                yield character

        connection.send(drip())

    with protocol_server(answer) as url, pytest.raises(RuntimeError, match="reset: TimeoutError"):
        OpenEnvEnv(url, timeout=0.5).reset()


def test_addresses_and_limits() -> None:
    assert OpenEnvEnv("https://example.org/space/").url == "wss://example.org/space/ws"
    for arguments, message in (
        ({"url": "ftp://example.org"}, "url must be like"),
        ({"url": "ws://example.org", "timeout": 0}, "timeout and max_bytes must be > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            OpenEnvEnv(**arguments)  # type: ignore[arg-type]
