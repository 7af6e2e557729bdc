"""vLLM in process, with a stand-in for its `LLM` class: what it is given, and what is made of its output."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm_module import install

from lit_rft.generation import SamplingSettings, ServedAdapter, VllmInProcess
from lit_rft.generation.vllm_in_process import VllmEngine
from lit_rft.models import LoraSettings
from lit_rft.models.backbone import add_lora
from lit_rft.testing.tiny import make_model

END = 2
PROMPTS = [("a", [5, 6]), ("b", [7])]


class FakeLLM:
    """Completions that name the adapter: its number, the index in the group, the end."""

    def __init__(self, **options: Any) -> None:
        self.options, self.calls = options, ["start"]
        self.loras: dict[int, str] = {}
        self.parameters: list[Any] = []
        self.llm_engine = SimpleNamespace(
            add_lora=lambda request: self.loras.update({request.lora_int_id: request.lora_path}),
            remove_lora=self.loras.pop,
            model_config=SimpleNamespace(max_model_len=options["max_model_len"] or 64),
            engine_core=SimpleNamespace(shutdown=lambda: self.calls.append("shutdown")),
        )

    def generate(self, prompts: Any, parameters: Any, *, lora_request: Any, use_tqdm: bool) -> Any:
        self.calls.append("generate")
        self.parameters = list(parameters)
        return [
            SimpleNamespace(outputs=[self.choice(lora_request.lora_int_id, i) for i in range(wanted.n)][::-1])
            for wanted in parameters
        ]

    def choice(self, number: int, index: int) -> Any:
        ids = [10 + number, 20 + index, END]
        log_probs = [{token: SimpleNamespace(logprob=-float(token))} for token in ids]
        return SimpleNamespace(index=index, token_ids=ids, logprobs=log_probs, finish_reason="stop")

    def sleep(self, level: int) -> None:
        self.calls.append("sleep")

    def wake_up(self) -> None:
        self.calls.append("wake_up")


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    """The engines that were started."""
    return install(monkeypatch, FakeLLM)


def adapted(rank: int = 4) -> Any:
    model = add_lora(make_model(), LoraSettings(rank, 8, 0.0))
    model.peft_config["default"].base_model_name_or_path = "the-base-model"
    return model


def test_the_engine_starts_with_the_first_adapter_on_the_policys_model(engines: list[FakeLLM]) -> None:
    backend = VllmInProcess(options={"seed": 3}).connect()
    assert not engines
    first, second = (backend.load(adapted().save_pretrained) for _ in range(2))
    (llm,) = engines
    expected = {"model": "the-base-model", "dtype": "bfloat16", "enable_lora": True, "max_lora_rank": 64, "seed": 3}
    assert expected.items() <= llm.options.items() and llm.options["logprobs_mode"] == "processed_logprobs"
    assert llm.loras == {1: first.folder, 2: second.folder} and backend.model == "the-base-model"
    backend.unload(first)
    backend.unload(first)
    assert llm.loras == {2: second.folder}
    backend.close()
    backend.close()
    assert llm.calls == ["start", "shutdown"]
    backend.load(adapted().save_pretrained)
    assert len(engines) == 2 and list(engines[1].loras) == [3]  # numbers are never used again
    backend.close()


def test_groups_are_those_of_the_adapter_in_order(engines: list[FakeLLM]) -> None:
    backend = VllmInProcess().connect()
    backend.load(adapted().save_pretrained)
    adapter = backend.load(adapted().save_pretrained)
    sampling = SamplingSettings(5, 0.7, top_k=3, stop_token_ids=(9,), stop_strings=("x",))
    groups = backend.sample_groups(adapter, [*PROMPTS, ("c", [8])], [2, 0, 1], sampling, END, seed=1)
    assert [[completion.ids for completion in group] for group in groups] == [
        [[12, 20, END], [12, 21, END]], [], [[12, 20, END]]
    ]  # fmt: skip
    assert groups[0][1].log_probs == [-12.0, -21.0, -2.0] and groups[0][0].finished
    first, last = engines[0].parameters
    assert (first.n, first.top_k, first.temperature, first.max_tokens) == (2, 3, 0.7, 5)
    assert first.stop == ["x"] and first.stop_token_ids == [END, 9] and first.ignore_eos
    assert first.seed != last.seed
    greedy = backend.sample_groups(adapter, PROMPTS, [3, 0], SamplingSettings(5), END)
    assert len(greedy[0]) == 3 and engines[0].parameters[0].n == 1 and engines[0].parameters[0].top_k == -1
    backend.close()


def test_it_sleeps_between_rollouts_on_a_gpu_only(engines: list[FakeLLM], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping, plain = ["start", "generate", "sleep", "wake_up", "generate"], ["start", "generate", "generate"]
    for gpu, expected in ((True, sleeping), (False, plain)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        backend = VllmInProcess().connect()
        adapter = backend.load(adapted().save_pretrained)
        backend.sample_groups(adapter, PROMPTS, [1, 1], SamplingSettings(5), END)
        backend.rest()
        backend.rest()
        backend.sample_groups(adapter, PROMPTS, [1, 1], SamplingSettings(5), END)
        assert engines[-1].calls == expected and engines[-1].options["enable_sleep_mode"] == gpu
        backend.close()


def test_what_does_not_fit_is_refused(engines: list[FakeLLM], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = VllmInProcess(max_lora_rank=8, max_model_len=12).connect()
    with pytest.raises(RuntimeError, match=r"rank 16: set server.max_lora_rank to it or more, got 8"):
        backend.load(adapted(16).save_pretrained)
    adapter = backend.load(adapted().save_pretrained)
    with pytest.raises(ValueError, match=r"prompt 'a' has 2 tokens.* context of 13"):
        backend.sample_groups(adapter, PROMPTS, [1, 1], SamplingSettings(11), END)
    with pytest.raises(RuntimeError, match="expected a loaded adapter, got none"):
        backend.sample_groups(ServedAdapter("none", ""), PROMPTS, [1, 1], SamplingSettings(5), END)
    monkeypatch.setattr("lit_rft.generation.vllm_in_process.world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="for one process"):
        backend.load(adapted().save_pretrained)
    with pytest.raises(ValueError, match="gpu_memory"):
        VllmInProcess(gpu_memory=0.0)


def test_failures_of_vllm_name_it() -> None:
    def fail(**options: Any) -> Any:
        raise ValueError("no memory")

    def missing(**options: Any) -> Any:
        raise ModuleNotFoundError("No module named 'vllm'")

    for start, message in ((fail, "vLLM in process failed: ValueError: no memory"), (missing, "in one environment")):
        with pytest.raises(RuntimeError, match=message):
            VllmEngine(VllmInProcess(), start).load(adapted().save_pretrained)
