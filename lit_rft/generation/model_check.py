"""Check that a completion backend has the policy's base model."""

from typing import Any

import torch

from lit_rft.generation.sampling import Completion, SamplingSettings
from lit_rft.models.merging import use_adapter
from lit_rft.models.modes import evaluation_mode
from lit_rft.models.sharding import unsharded

PROBE = SamplingSettings(16, 1.0)
# mean over the tokens, in nats; rounding to bf16 makes a tenth of it, another model several times as much
MAX_DIFFERENCE = 0.3


def probe_prompt(policy: Any) -> list[int]:
    """Return the ids of a prompt that every tokenizer has."""
    return [i % policy.config.vocab_size for i in range(17, 41)]


@torch.no_grad()
def check_model(policy: Any, adapter: str, completion: Completion, served: str) -> None:
    """Compare the log-probabilities of a completion of `probe_prompt` with the policy's.

    All processes must call this.

    Args:
        policy: language model with adapters.
        adapter: name of the one that sampled.
        completion: at the settings `PROBE`.
        served: name of the backend's base model.

    Raises:
        ValueError: They differ by more than rounding.
    """
    prompt = probe_prompt(policy)
    device = next(policy.parameters()).device
    ids = torch.tensor([[*prompt, *completion.ids]], device=device)
    with unsharded(policy), use_adapter(policy, adapter), evaluation_mode(policy):
        logits = policy(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    log_probs = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
    difference = (log_probs.cpu() - torch.tensor(completion.log_probs)).abs().mean().item()
    if not difference <= MAX_DIFFERENCE:
        name = getattr(policy.config, "_name_or_path", "") or "the policy's model"
        raise ValueError(
            f"vLLM has another model than the policy: {served} in place of {name} (log-probabilities of the same "
            f"tokens differ by {difference:.2f} on average, expected at most {MAX_DIFFERENCE}): start it with "
            "policy.model"
        )
