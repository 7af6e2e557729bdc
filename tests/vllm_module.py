"""A module `vllm` in the place of the real one, with a stand-in for its `LLM` class."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def install(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]) -> list[Any]:
    """Let `vllm.LLM` be made by a function; the list gets the engines that are started."""
    started: list[Any] = []

    def start(**options: Any) -> Any:
        started.append(make(**options))
        return started[-1]

    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams = start, lambda **options: SimpleNamespace(**options)  # type: ignore[attr-defined]
    request.LoRARequest = lambda name, number, path: SimpleNamespace(  # type: ignore[attr-defined]
        lora_name=name, lora_int_id=number, lora_path=path
    )
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return started
