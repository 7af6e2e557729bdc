"""All weights in place of an adapter, with a stand-in for vLLM's `LLM` class that loads and samples a small model: it
follows the policy from step to step."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from grpo_stage import make_grpo, make_prompts
from transformers import AutoModelForCausalLM
from vllm_module import install

from lit_rft.datamodules import PromptLoader
from lit_rft.generation import SamplingSettings, ServerSettings, VllmInProcess, sample_groups
from lit_rft.generation.adapter_sync import AdapterSync
from lit_rft.models import LoraSettings
from lit_rft.models.lora import add_lora
from lit_rft.models.merged_export import save_merged
from lit_rft.models.merging import use_adapter
from lit_rft.stages import AnsweringSettings
from lit_rft.testing.tiny import let_adapters_act, make_model
from lit_rft.testing.tiny_stage import ADAPTERS, fit

IDS = torch.arange(5, 40)[None]


class FakeLLM:
    """A model that is read from a folder, and samples once the keys and values of its predecessor are dropped."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.model = self.loaded = AutoModelForCausalLM.from_pretrained(options["model"])
        self.folders: list[str] = []
        self.sampled: list[torch.Tensor] = []  # logits of the model in each rollout
        self.resets = True
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=None), engine_core=SimpleNamespace(shutdown=lambda: None)
        )

    def collective_rpc(self, method: str, args: tuple[str]) -> None:
        assert method == "reload_policy"
        (folder,) = args
        files = {file.name for file in Path(folder).iterdir()}
        assert "model.safetensors" in files and "adapter_config.json" not in files
        self.loaded = AutoModelForCausalLM.from_pretrained(folder)
        self.folders.append(folder)

    def reset_prefix_cache(self) -> bool:
        if self.resets:
            self.model = self.loaded
        return self.resets

    def generate(self, prompts: Any, parameters: Any, *, lora_request: Any, use_tqdm: bool) -> Any:
        assert lora_request is None
        self.sampled.append(logits(self.model))
        return [self.answer(p["prompt_token_ids"], wanted) for p, wanted in zip(prompts, parameters, strict=True)]

    def answer(self, prompt: list[int], wanted: Any) -> Any:
        end, *others = wanted.stop_token_ids
        sampling = SamplingSettings(wanted.max_tokens, wanted.temperature, stop_token_ids=tuple(others))
        (group,) = sample_groups(self.model, [("", prompt)], [wanted.n], sampling, end, seed=wanted.seed)
        choices = [
            SimpleNamespace(
                index=index, token_ids=sample.ids, finish_reason="stop" if sample.finished else "length",
                logprobs=[{i: SimpleNamespace(logprob=p)} for i, p in zip(sample.ids, sample.log_probs, strict=True)],
            )
            for index, sample in enumerate(group)
        ]  # fmt: skip
        return SimpleNamespace(outputs=choices)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    training, result = model.training, model.eval()(input_ids=IDS).logits
    model.train(training)
    return result


class PolicyBefore(L.Callback):
    """The policy's logits before each step."""

    def __init__(self) -> None:
        self.logits: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, stage: Any, *_: Any) -> None:
        self.logits.append(logits(stage.policy))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    """The engines that were started."""
    return install(monkeypatch, FakeLLM)


MERGED = VllmInProcess(dtype="float32", weights="merged")


@pytest.mark.parametrize("lora", [ADAPTERS, None], ids=["adapter", "all weights"])
def test_every_rollout_is_by_the_current_policy(engines: list[FakeLLM], tiny_model_folder: Path, lora: Any) -> None:
    before = PolicyBefore()
    stage = make_grpo(tiny_model_folder, lora=lora, answering=AnsweringSettings(server=MERGED))
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 3, callbacks=[before])
    (llm,) = engines
    assert llm.options["model"] == str(tiny_model_folder) and "enable_lora" not in llm.options
    assert len(llm.folders) == 3 and not any(Path(folder).exists() for folder in llm.folders)
    _, *sampled = llm.sampled  # the first is the check of the model
    for expected, current in zip(before.logits, sampled, strict=True):
        torch.testing.assert_close(current, expected, rtol=1e-4, atol=1e-4)
    assert all((a - b).abs().max() > 1e-2 for a, b in pairwise(sampled))


@pytest.mark.parametrize(
    ("architecture", "lora"),
    [
        ("llama", {}), ("qwen2_moe", {}), ("llama", {"use_dora": True}),
        ("llama", {"modules_to_save": ["lm_head"]}), ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    ],
    ids=str,
)  # fmt: skip
def test_the_written_model_has_the_outputs_of_the_policy(tmp_path: Path, architecture: str, lora: Any) -> None:
    """Of either adapter; the policy does not change."""
    settings = LoraSettings(4, 8, 0.0, **{"target_modules": "all-linear", **lora})
    policy: Any = add_lora(make_model(architecture), settings)
    policy.add_adapter("low", policy.peft_config["default"])
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight += 0.3 * torch.randn_like(weight)
    state = {name: weight.clone() for name, weight in policy.state_dict().items()}
    outputs = {}
    for adapter in ("default", "low"):
        save_merged(policy, tmp_path / adapter, adapter=adapter, dtype=torch.float32)
        outputs[adapter] = logits(AutoModelForCausalLM.from_pretrained(tmp_path / adapter))
        with use_adapter(policy, adapter):
            torch.testing.assert_close(outputs[adapter], logits(policy), rtol=1e-4, atol=1e-3)
    assert (outputs["default"] - outputs["low"]).abs().max() > 1
    assert all(torch.equal(weight, state[name]) for name, weight in policy.state_dict().items())


def test_tied_weights_are_written_once_in_the_wanted_type(tmp_path: Path) -> None:
    policy = make_model(tie_word_embeddings=True)
    with torch.autocast("cpu", torch.bfloat16):
        save_merged(policy, tmp_path, dtype=torch.bfloat16)
    written = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {weight.dtype for weight in written.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(written.lm_head.weight, policy.lm_head.weight.bfloat16(), rtol=0, atol=0)
    for settings in ({"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}):
        tied = add_lora(make_model(tie_word_embeddings=True), LoraSettings(4, 8, 0.0, **settings))
        with pytest.raises(ValueError, match=r"ties lm_head to model.embed_tokens, but only one"):
            save_merged(tied, tmp_path, dtype=torch.float32)


def test_there_is_room_for_one_policy(engines: list[FakeLLM], tiny_model_folder: Path) -> None:
    policy: Any = add_lora(AutoModelForCausalLM.from_pretrained(tiny_model_folder), ADAPTERS)
    policy.add_adapter("low", policy.peft_config["default"])
    let_adapters_act(policy)
    backend = MERGED.connect()
    high, low = AdapterSync(backend), AdapterSync(backend, "low")
    first = high.current(policy, 0)
    assert high.current(policy, 1) != first
    with pytest.raises(RuntimeError, match=r"room for one policy .* set server.weights: adapter"):
        low.current(policy, 0)
    high.close()
    low.current(policy, 0)
    low.close()
    assert len(engines) == 2


def test_a_cache_that_is_not_emptied_is_an_error(engines: list[FakeLLM], tiny_model_folder: Path) -> None:
    sync = AdapterSync(MERGED.connect())
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    sync.current(policy, 0)
    engines[0].resets = False
    with pytest.raises(RuntimeError, match="prefix cache"):
        sync.current(policy, 1)


def test_other_backends_name_the_setting(tiny_model_folder: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    for settings in (VllmInProcess(), ServerSettings("http://127.0.0.1:9")):
        with pytest.raises(ValueError, match=r"adapters, not whole models.*lit_rft.VllmInProcess, weights: merged"):
            AdapterSync(settings.connect()).current(policy, 0)
    with pytest.raises(ValueError, match=r"server\.dtype must be one of bfloat16, float16, float32 .* got 'auto'"):
        VllmInProcess(dtype="auto", weights="merged")
    with pytest.raises(ValueError, match=r"server\.weights must be adapter or merged"):
        VllmInProcess(weights="all")  # type: ignore[arg-type]
