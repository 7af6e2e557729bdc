"""All weights in place of an adapter: samples follow a policy that changes much, whatever it trains."""

import copy
from typing import Any

import pytest
import torch
from with_vllm_figures import record

from lit_rft.generation import CompletionBackend, SamplingSettings, ServedAdapter
from lit_rft.generation.adapter_sync import AdapterSync
from lit_rft.models import LoraSettings, load_backbone
from lit_rft.testing.tiny import let_adapters_act

SAMPLING = SamplingSettings(16, 1.0)
LORA = LoraSettings(8, 16, 0.0, "all-linear")


@pytest.fixture
def prompts(tokenizer: Any) -> list[tuple[str, list[int]]]:
    """Longer than the blocks of vLLM's prefix cache."""
    texts = [f"{number} plus {number} is {2 * number}. " * 30 for number in (3, 40)]
    return [(text, tokenizer(text)["input_ids"]) for text in texts]


def change(policy: Any) -> None:
    """Change all trainable weights much."""
    if hasattr(policy, "peft_config"):
        return let_adapters_act(policy, 0.2)
    with torch.no_grad():
        for weight in policy.parameters():  # the embedding, which is the output layer, too
            weight += 0.3 * weight.std(correction=0) * torch.randn_like(weight)


@torch.no_grad()
def distance(policy: Any, prompts: Any, groups: Any) -> float:
    """Mean absolute difference of the sampled tokens' log-probabilities from the policy's."""
    differences = []
    for (_, prompt), group in zip(prompts, groups, strict=True):
        for completion in group:
            logits = policy(input_ids=torch.tensor([[*prompt, *completion.ids]])).logits[0, len(prompt) - 1 : -1]
            expected = logits.float().log_softmax(-1).gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
            differences.append(expected - torch.tensor(completion.log_probs))
    return torch.cat(differences).abs().mean().item()


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "all weights"])
def test_samples_follow_the_policy(
    merged_in_process: CompletionBackend, model_folder: str, tokenizer: Any, prompts: Any, lora: Any
) -> None:
    policy: Any = load_backbone(model_folder, dtype=torch.float32, lora=lora).eval()
    sync = AdapterSync(merged_in_process)
    torch.manual_seed(0)

    def sample(weights: ServedAdapter) -> Any:
        return merged_in_process.sample_groups(weights, prompts, [2, 2], SAMPLING, tokenizer.eos_token_id, seed=1)

    groups, before = sample(sync.current(policy, 0)), policy
    assert distance(policy, prompts, groups) < 1e-3
    for version in (1, 2):
        before = copy.deepcopy(policy)
        change(policy)
        groups = sample(sync.current(policy, version))
        now, then = distance(policy, prompts, groups), distance(before, prompts, groups)
        record(f"merged, {'all weights' if lora is None else 'adapter'}, version {version}", now=now, before=then)
        assert now < 1e-3 and then > 0.1
    merged_in_process.unload(sync.current(policy, 2))
