"""A real vLLM, as a server and in process, on the default model; `make test-vllm` sets up the environment."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from real_vllm import RealServer

from lit_rft.generation import CompletionBackend, ServerSettings, VllmInProcess
from lit_rft.models import LoraSettings, load_backbone, load_tokenizer
from lit_rft.models.backbone import SMOLLM2, resolve_model
from lit_rft.testing.tiny import let_adapters_act

CONTEXT = 512


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    spec = importlib.util.find_spec("vllm")
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.timeout(900))
        if spec is None or spec.origin is None:
            item.add_marker(pytest.mark.skip(reason="needs vLLM: make test-vllm"))


@pytest.fixture(scope="session")
def model_folder() -> str:
    return resolve_model(SMOLLM2)


@pytest.fixture(scope="session")
def real_server(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server in bf16. An address in LIT_RFT_VLLM_URL takes its place, for all tests that do not end it."""
    with RealServer(model_folder, tmp_path_factory.mktemp("vllm"), context=CONTEXT) as server:
        yield server


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    return os.environ.get("LIT_RFT_VLLM_URL") or request.getfixturevalue("real_server").url


@pytest.fixture(scope="session")
def in_process(model_folder: str) -> Iterator[CompletionBackend]:
    """An engine of this process, in float32."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
    backend = VllmInProcess(model_folder, dtype="float32", max_model_len=CONTEXT).connect()
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def merged_in_process(model_folder: str) -> Iterator[CompletionBackend]:
    """An engine of this process that gets all weights, in float32."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
    backend = VllmInProcess(model_folder, dtype="float32", weights="merged", max_model_len=CONTEXT).connect()
    yield backend
    backend.close()


@pytest.fixture(scope="session", params=["server", "in_process"])
def backend(request: pytest.FixtureRequest) -> Iterator[CompletionBackend]:
    if request.param == "in_process":
        yield request.getfixturevalue("in_process")
    else:
        server = ServerSettings(request.getfixturevalue("server_url")).connect()
        yield server
        server.close()


@pytest.fixture(scope="session")
def policy(model_folder: str) -> Any:
    """The default model with two adapters that act, in float32."""
    model: Any = load_backbone(model_folder, dtype=torch.float32, lora=LoraSettings(8, 16, 0.0, "all-linear"))
    torch.manual_seed(0)
    model.add_adapter("low", model.peft_config["default"])
    let_adapters_act(model, 0.05)
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer(model_folder: str) -> Any:
    return load_tokenizer(model_folder)
