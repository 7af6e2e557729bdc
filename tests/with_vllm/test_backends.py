"""Completions and episodes by a real vLLM: what is sampled, by which adapter, and with which log-probabilities."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from with_vllm_figures import record

from lit_rft.generation import CompletionBackend, SamplingSettings, ServedAdapter, ServedConversations
from lit_rft.models.merging import use_adapter

TEXTS = ("The capital of France is", "Count: 1, 2, 3,", "Once upon a time")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture
def prompts(tokenizer: Any) -> list[tuple[str, list[int]]]:
    return [(text, tokenizer(text)["input_ids"]) for text in TEXTS]


@pytest.fixture(scope="module")
def adapters(backend: CompletionBackend, policy: Any) -> Iterator[dict[str, ServedAdapter]]:
    """Both adapters of the policy, loaded at the same time."""

    def load(name: str) -> ServedAdapter:
        def write(folder: Any) -> Any:
            policy.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
            return folder if name == "default" else folder / name

        return backend.load(write)

    loaded = {name: load(name) for name in ("default", "low")}
    yield loaded
    for adapter in loaded.values():
        backend.unload(adapter)


@torch.no_grad()
def recomputed(policy: Any, adapter: str, prompt: list[int], ids: list[int], dtype: torch.dtype, t: float) -> Any:
    whole = torch.tensor([[*prompt, *ids]])
    with use_adapter(policy, adapter), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = policy(input_ids=whole).logits[0, len(prompt) - 1 : -1].float()
    return (logits / t).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def test_log_probabilities_are_those_of_the_adapter(
    backend: CompletionBackend, adapters: dict[str, ServedAdapter], policy: Any, tokenizer: Any, prompts: Any
) -> None:
    """Two adapters at once, recomputed by the policy in float32 and bf16; importance weights are near 1."""
    eos, sampling = tokenizer.eos_token_id, SamplingSettings(24, 0.7)
    for name, other in (("default", "low"), ("low", "default")):
        groups = backend.sample_groups(adapters[name], prompts, [2] * 3, sampling, eos, seed=1)
        differences: dict[str, list[Any]] = {"float32": [], "bfloat16": [], other: []}
        for (_, prompt), group in zip(prompts, groups, strict=True):
            for completion in group:
                sampled = torch.tensor(completion.log_probs)
                for precision, dtype in PRECISIONS.items():
                    expected = recomputed(policy, name, prompt, completion.ids, dtype, 0.7)
                    differences[precision].append(expected - sampled)
                expected = recomputed(policy, other, prompt, completion.ids, torch.float32, 0.7)
                differences[other].append(expected - sampled)
        exact, half, wrong = (torch.cat(differences[key]) for key in ("float32", "bfloat16", other))
        for precision, values in (("float32", exact), ("bf16", half)):
            record(
                f"{type(backend).__name__} {name}, policy in {precision}",
                tokens=len(values), mean=values.abs().mean().item(), largest=values.abs().max().item(),
                weight=values.exp().mean().item(),
            )  # fmt: skip
        limit = 1e-3 if type(backend).__name__ == "VllmEngine" else 0.1
        assert exact.abs().mean() < limit < wrong.abs().mean()
        assert half.abs().mean() < 0.15 and 0.9 < half.exp().mean() < 1.1


def test_each_adapter_and_seed_has_samples_of_its_own(
    backend: CompletionBackend, adapters: dict[str, ServedAdapter], tokenizer: Any, prompts: Any
) -> None:
    def sample(adapter: str, seed: int, number: int = 3) -> Any:
        sampling = SamplingSettings(8, 1.0)
        groups = backend.sample_groups(
            adapters[adapter], prompts[:number], [2] * number, sampling, tokenizer.eos_token_id, seed=seed
        )
        return [[completion.ids for completion in group] for group in groups]

    first = sample("default", 1)
    assert sample("default", 2) != first != sample("low", 1)
    assert any(a != b for a, b in first)  # members of a group
    assert sample("default", 1, 1)[0][0][:2] == first[0][0][:2]  # rounding may change later tokens


def test_top_k_and_top_p(
    backend: CompletionBackend, adapters: dict[str, ServedAdapter], tokenizer: Any, prompts: Any
) -> None:
    eos = tokenizer.eos_token_id
    greedy = backend.sample_groups(adapters["default"], prompts[:1], [2], SamplingSettings(6), eos)[0]
    assert greedy[0] == greedy[1]
    for sampling in (SamplingSettings(6, 1.0, top_k=1), SamplingSettings(6, 1.0, top_p=1e-6)):
        ((completion,),) = backend.sample_groups(adapters["default"], prompts[:1], [1], sampling, eos)
        assert completion.ids[:3] == greedy[0].ids[:3] and max(map(abs, completion.log_probs)) < 1e-3
    (group,) = backend.sample_groups(adapters["default"], prompts[:1], [8], SamplingSettings(1, 2.0, top_k=2), eos)
    assert len({completion.ids[0] for completion in group}) <= 2
    assert all(completion.log_probs[0] > math.log(1e-3) for completion in group)


def test_ends_of_completions(
    backend: CompletionBackend, adapters: dict[str, ServedAdapter], tokenizer: Any, prompts: Any
) -> None:
    """By a string, by any end token that is given and by no other."""
    eos, adapter = tokenizer.eos_token_id, adapters["default"]
    ((plain,),) = backend.sample_groups(adapter, prompts[:1], [1], SamplingSettings(8), eos)
    end = plain.ids[2]
    ((ended,),) = backend.sample_groups(adapter, prompts[:1], [1], SamplingSettings(8), [eos, end])
    assert ended.finished and ended.ids == plain.ids[: plain.ids.index(end) + 1]
    stop = tokenizer.decode([plain.ids[1]]).strip() or tokenizer.decode([plain.ids[1]])
    ((stopped,),) = backend.sample_groups(adapter, prompts[:1], [1], SamplingSettings(8, stop_strings=(stop,)), eos)
    assert stopped.finished and stop in tokenizer.decode(stopped.ids)
    assert stopped.ids == plain.ids[: len(stopped.ids)] and stop not in tokenizer.decode(stopped.ids[:-1])
    prompt = [(name, [*ids, eos]) for name, ids in prompts[:1]]
    other = backend.sample_groups(adapter, prompt, [4], SamplingSettings(8, 1.5), end)[0]
    assert all(len(completion.ids) == 8 or completion.ids[-1] == end for completion in other)


def test_a_prompt_beyond_the_context_is_refused(
    backend: CompletionBackend, adapters: dict[str, ServedAdapter], tokenizer: Any
) -> None:
    prompt = ("long", [5] * 8190)
    with pytest.raises(ValueError, match=r"prompt 'long' has 8190 tokens.* --max-model-len 8198"):
        backend.sample_groups(adapters["default"], [prompt], [1], SamplingSettings(8), tokenizer.eos_token_id)


def test_conversations_are_continued(
    backend: CompletionBackend, adapters: dict[str, ServedAdapter], policy: Any, tokenizer: Any
) -> None:
    """Greedily, the second turn is the most likely one after the first."""
    eos = tokenizer.eos_token_id
    conversations = ServedConversations(backend, adapters["low"], eos, SamplingSettings(4), num_slots=2)
    slot = conversations.open("a")
    first, second = [tokenizer(text)["input_ids"] for text in (TEXTS[0], " and that of Italy is")]
    said = conversations.sample({slot: first})[slot]
    then = conversations.sample({slot: second})[slot]
    history = [*first, *said.ids, *second]
    expected = recomputed(policy, "low", history, then.ids, torch.float32, 1.0)
    difference = (expected - torch.tensor(then.log_probs)).abs().mean()
    assert difference < (1e-3 if type(backend).__name__ == "VllmEngine" else 0.15)
