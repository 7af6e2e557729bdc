"""Fixtures that more than one folder of tests uses."""

import gc
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from process_pair import ProcessPair

from lit_rft.testing import save_tiny_model

# Tiny tensors gain nothing from a second thread, and lose a lot when the cores are busy.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, as a folder that `from_pretrained` loads."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPair]:
    """Two processes for runs on two devices; they start when they are first needed."""
    with ProcessPair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


# What starts processes, simulators or a connection: a file with one of these is left out of `make test-fast`.
STARTS_PROCESSES = re.compile(
    r"\b(subprocess|socket|multiprocessing|\w+_in_processes|process_pair|command|build|every_stage|EnvPool|VerifierPool|MathReward|"
    r"Protocol|\w+Protocol|PROTOCOLS|\w+Suite|SimulatorError|ScienceWorldEnv|JavaProcess|VllmServer|fake_vllm|fake_chat_server|fake_envs|online_run|"
    r"luffy_demonstrations|glider_games|never_answer|turn_credit|chromium|demo\.main)\b"
)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from searching libraries and thousands of tests again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts processes; skip what is marked `gpu` where there is none."""
    found: dict[Path, bool] = {}
    for item in items:
        if item.path not in found:
            found[item.path] = STARTS_PROCESSES.search(item.path.read_text(encoding="utf-8")) is not None
        if found[item.path]:
            item.add_marker(pytest.mark.processes)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def no_processes_in_fast_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test of `make test-fast` that starts a process: the marker above has missed it."""
    if "not processes" not in request.config.option.markexpr:
        return

    def refuse(self: object, args: object, *rest: object, **options: object) -> None:
        pytest.fail(f"a fast test starts {args!r}: add what tells so to STARTS_PROCESSES in tests/conftest.py")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
