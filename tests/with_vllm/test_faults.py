"""A real server that is killed, restarted, or stopped in the middle of a rollout: the run waits, and then goes on."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_vllm import START_LIMIT, RealServer
from with_vllm_figures import record

from lit_rft.generation import SamplingSettings, ServedAdapter, ServerSettings, VllmServer

SAMPLING = SamplingSettings(24, 1.0)


@pytest.fixture
def client(real_server: RealServer) -> Iterator[VllmServer]:
    client = VllmServer(ServerSettings(real_server.url, timeout=START_LIMIT, patience=START_LIMIT))
    yield client
    client.close()


@pytest.fixture
def adapter(client: VllmServer, policy: Any) -> ServedAdapter:
    def write(folder: Path) -> None:
        policy.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)

    return client.load(write)


def sample(client: VllmServer, adapter: ServedAdapter, tokenizer: Any, size: int = 4) -> Any:
    prompts = [(str(number), tokenizer(f"Tell {number} stories:")["input_ids"]) for number in range(4)]
    return client.sample_groups(adapter, prompts, [size] * 4, SAMPLING, tokenizer.eos_token_id, seed=1)


def in_rollout(act: Callable[[], None], rollout: Callable[[], Any], wait: float) -> Any:
    """Do something while a rollout is sampled."""
    thread = threading.Thread(target=lambda: (time.sleep(wait), act()))
    thread.start()
    try:
        return rollout()
    finally:
        thread.join()


def test_a_stopped_server_costs_waiting(
    real_server: RealServer, client: VllmServer, adapter: ServedAdapter, tokenizer: Any
) -> None:
    real_server.signal(signal.SIGSTOP)
    started = time.monotonic()
    groups = in_rollout(
        lambda: real_server.signal(signal.SIGCONT), lambda: sample(client, adapter, tokenizer), wait=5.0
    )
    record("stopped for 5 seconds", seconds=time.monotonic() - started)
    assert [len(group) for group in groups] == [4] * 4


def test_a_server_that_hangs_longer_than_a_request_may_is_asked_again(
    real_server: RealServer, client: VllmServer, adapter: ServedAdapter, tokenizer: Any, caplog: Any
) -> None:
    """The client gives up its requests, waits for an answer, and sends the same ones again."""
    settings = ServerSettings(real_server.url, timeout=30.0, patience=START_LIMIT)
    impatient = VllmServer(settings)
    sample(impatient, adapter, tokenizer, 1)  # it knows the server's models from now on
    real_server.signal(signal.SIGSTOP)
    started = time.monotonic()
    groups = in_rollout(
        lambda: real_server.signal(signal.SIGCONT), lambda: sample(impatient, adapter, tokenizer, 1), wait=40.0
    )
    record("stopped for 40 seconds, requests may take 30", seconds=time.monotonic() - started)
    assert [len(group) for group in groups] == [1] * 4
    assert "waiting up to" in caplog.text and "answers again" in caplog.text


def test_a_killed_server_that_is_started_again_gets_its_adapter_and_the_same_requests(
    real_server: RealServer, client: VllmServer, adapter: ServedAdapter, tokenizer: Any, caplog: Any
) -> None:
    before = sample(client, adapter, tokenizer)
    started = time.monotonic()

    def restart() -> None:
        real_server.kill()
        real_server.start()

    groups = in_rollout(restart, lambda: sample(client, adapter, tokenizer), wait=0.2)
    record("killed and started again", seconds=time.monotonic() - started)
    assert [len(group) for group in groups] == [4] * 4
    # the same seeds; rounding may change later tokens
    pairs = [pair for new, old in zip(groups, before, strict=True) for pair in zip(new, old, strict=True)]
    assert sum(a.ids[0] == b.ids[0] for a, b in pairs) > 12
    assert "waiting up to" in caplog.text and "has lost the adapter" in caplog.text and "answers again" in caplog.text
