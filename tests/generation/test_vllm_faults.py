"""A generation server that dies, hangs, restarts or fails costs waiting, not samples; one that is set up otherwise is
refused with what to change."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fake_vllm import BASE, END, GONE, PROMPTS, FakeVllm, adapted, serving

from lit_rft.generation import SamplingSettings, ServedAdapter, ServerSettings, VllmServer
from lit_rft.generation.adapter_sync import AdapterSync
from lit_rft.models import LoraSettings
from lit_rft.models.backbone import add_lora
from lit_rft.testing.tiny import make_model

SAMPLING = SamplingSettings(9, 1.0)


@pytest.fixture
def fake() -> FakeVllm:
    return FakeVllm(make_model())


@pytest.fixture
def server(fake: FakeVllm) -> Iterator[VllmServer]:
    with serving(fake) as url:
        server = VllmServer(ServerSettings(url, timeout=1.0, patience=20))
        yield server
        server.close()


def sample(server: VllmServer, adapter: ServedAdapter) -> list[list[list[int]]]:
    groups = server.sample_groups(adapter, PROMPTS, [3, 1, 2], SAMPLING, END, seed=5)
    return [[completion.ids for completion in group] for group in groups]


def first(number: int, fault: Callable[[], int | None], path: str = "/v1/completions") -> Any:
    """A fault of the first requests to an endpoint."""
    left, lock = [number], threading.Lock()

    def apply(requested: str, content: Any) -> int | None:
        with lock:
            if requested != path or not left[0]:
                return None
            left[0] -= 1
        return fault()

    return apply


def hang() -> None:
    time.sleep(3)


@pytest.mark.parametrize("fault", [lambda: 500, lambda: 503, lambda: GONE, hang], ids=["500", "503", "gone", "hung"])
def test_a_fault_costs_nothing_but_time(fake: FakeVllm, server: VllmServer, caplog: Any, fault: Any) -> None:
    adapter = server.load(adapted().save_pretrained)
    expected = sample(server, adapter)
    fake.fault = first(4, fault)
    assert sample(server, adapter) == expected
    assert len([line for line in caplog.messages if "waiting up to 20 s for the server" in line]) in (1, 2)
    assert "answers again after" in caplog.text


def test_a_restarted_server_gets_its_adapter_again(fake: FakeVllm, server: VllmServer, caplog: Any) -> None:
    """Both when it dies in the middle and when it is back before the next request."""
    adapter = server.load(adapted().save_pretrained)
    expected = sample(server, adapter)

    def restart() -> int:
        fake.adapters.clear()
        return GONE

    fake.fault = first(1, restart)
    assert sample(server, adapter) == expected
    fake.adapters.clear()
    assert sample(server, adapter) == expected and set(fake.adapters) == {adapter.name}
    assert "has lost the adapter" in caplog.text


def test_another_process_can_bring_the_adapter_back(fake: FakeVllm, server: VllmServer) -> None:
    adapter = server.load(adapted().save_pretrained)
    expected = sample(server, adapter)
    fake.adapters.clear()
    other = VllmServer(server.settings)
    assert sample(other, adapter) == expected
    other.close()
    assert set(fake.adapters) == {adapter.name}  # it is not that process's to remove


def test_a_server_may_start_late_and_on_the_same_address(fake: FakeVllm) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = VllmServer(ServerSettings(f"http://127.0.0.1:{port}", patience=30))
    done = threading.Event()

    def serve() -> None:
        time.sleep(0.7)
        with serving(fake, port):
            done.wait(60)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        adapter = server.load(adapted().save_pretrained)
        assert set(fake.adapters) == {adapter.name}
        server.close()
    finally:
        done.set()
        thread.join()


def test_patience_ends(fake: FakeVllm) -> None:
    with serving(fake) as url:
        server = VllmServer(ServerSettings(url, patience=1.0))
        adapter = server.load(adapted().save_pretrained)
    with pytest.raises(RuntimeError, match=r"Connection refused.*tried again for 1 s \(server.patience\)"):
        sample(server, adapter)
    with serving(fake) as url:  # a fault of the requests alone has the same limit
        server = VllmServer(ServerSettings(url, patience=1.0))
        adapter = server.load(adapted().save_pretrained)
        fake.fault = lambda path, content: 500 if content.get("n") else None
        with pytest.raises(RuntimeError, match=r"failed \(500\).*continue from the last checkpoint"):
            sample(server, adapter)
        fake.fault = lambda path, content: None
        assert len(sample(server, adapter)) == 3
        server.close()


def test_what_is_rejected_is_not_sent_again(fake: FakeVllm, server: VllmServer, caplog: Any) -> None:
    adapter = server.load(adapted().save_pretrained)
    requests: list[str] = []

    def reject(path: str, content: Any) -> int | None:
        requests.append(path)
        return 400 if path == "/v1/completions" else None

    fake.fault = reject
    with pytest.raises(RuntimeError, match=r"rejected .*\(400\)"):
        server.sample_groups(adapter, PROMPTS[:1], [1], SAMPLING, END)
    assert requests.count("/v1/completions") == 1
    fake.fault = lambda path, content: None


def test_an_interrupt_ends_requests_in_progress(fake: FakeVllm, server: VllmServer) -> None:
    """As Ctrl-C does: the other requests do not hold it up."""
    patient = VllmServer(ServerSettings(server.url, timeout=100, patience=100))
    adapter = patient.load(adapted().save_pretrained)
    expected, release = sample(patient, adapter), threading.Event()
    hung = threading.Semaphore(0)

    def block(path: str, content: Any) -> int | None:
        if path != "/v1/completions":
            return None
        if content["prompt"] == PROMPTS[0][1]:
            hung.acquire()
            hung.acquire()
            return 400
        hung.release()
        release.wait(60)
        return None

    fake.fault = block
    with pytest.raises(RuntimeError, match="rejected"):
        sample(patient, adapter)
    assert not release.is_set()
    release.set()
    fake.fault = lambda path, content: None
    assert sample(patient, adapter) == expected
    patient.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fault": lambda path, content: 404 if path == "/v1/load_lora_adapter" else None},
         r"start it with --enable-lora .* VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"rank": 2}, "--max-lora-rank 4 or more, or lower policy.lora.rank"),
        ({"processed": False}, "--logprobs-mode processed_logprobs"),
    ],
    ids=["no LoRA", "small rank", "raw log-probabilities"],
)  # fmt: skip
def test_a_server_that_is_set_up_otherwise_is_refused(
    fake: FakeVllm, server: VllmServer, change: dict[str, Any], message: str, caplog: Any
) -> None:
    vars(fake).update(change)
    with pytest.raises(RuntimeError, match=message):
        server.load(adapted().save_pretrained)
    assert "waiting" not in caplog.text


def test_an_adapter_that_the_server_cannot_read(server: VllmServer) -> None:
    with pytest.raises(RuntimeError, match=r"cannot read /nowhere: set server.adapter_dir"):
        server.sample_groups(ServedAdapter("none", "/nowhere"), PROMPTS[:1], [1], SAMPLING, END)


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_sampled(fake: FakeVllm, server: VllmServer) -> None:
    fake.context = 13
    adapter = server.load(adapted().save_pretrained)
    sent = len(fake.requests)
    message = r"prompt 'b' has 5 tokens, and with max_new_tokens=9 .* --max-model-len 14"
    with pytest.raises(ValueError, match=message):
        sample(server, adapter)
    assert len(fake.requests) == sent
    assert server.sample_groups(adapter, PROMPTS[:1], [1], SAMPLING, END)


def test_another_model_is_refused_and_the_same_is_not(fake: FakeVllm, server: VllmServer) -> None:
    def sharp(seed: int) -> Any:
        model = make_model()
        torch.manual_seed(seed)
        with torch.no_grad():
            model.lm_head.weight.normal_(0, 1.0)
        return model

    fake.model = sharp(1)
    AdapterSync(VllmServer(server.settings)).current(add_lora(sharp(1), LoraSettings(4, 8, 0.0)), 0)
    sync = AdapterSync(VllmServer(server.settings))
    with pytest.raises(ValueError, match=f"vLLM has another model than the policy: {BASE} in place of"):
        sync.current(add_lora(sharp(2), LoraSettings(4, 8, 0.0)), 0)
    sync.close()


def test_the_check_of_the_model_is_made_with_the_adapter_that_acts(fake: FakeVllm, server: VllmServer) -> None:
    policy = adapted()
    policy.add_adapter("low", policy.peft_config["default"])
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".low." in name:
                weight.normal_(0, 1.0)
    for adapter in ("default", "low"):
        sync = AdapterSync(VllmServer(server.settings), adapter)
        sync.current(policy, 0)
        sync.close()
