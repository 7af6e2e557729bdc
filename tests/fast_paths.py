"""A tiny model and batches in every layout, to compare fast paths with the default implementation."""

from typing import Any

import torch
from torch import Tensor

from lit_rft.generation.recompute import make_decoder
from lit_rft.models import LoraSettings, utterance_log_probs
from lit_rft.models.lora import add_lora
from lit_rft.testing.tiny import let_adapters_act, make_groups, make_model
from lit_rft.transcripts import TranscriptBatch, collate_packed, collate_padded, collate_shared

GROUPS = make_groups()
TRANSCRIPTS = [transcript for group in GROUPS for transcript in group]
LAYOUTS = {
    "padded": collate_padded(TRANSCRIPTS, 0),
    "packed": collate_packed(TRANSCRIPTS, 0, 9999),
    "shared": collate_shared(GROUPS, 0),
}
PROMPTS = {0: [5, 6, 7], 1: list(range(8, 30)), 2: [40, 41]}


def make_adapted(architecture: str = "llama") -> Any:
    model = add_lora(make_model(architecture), LoraSettings(4, 8, 0.0, "all-linear"))
    let_adapters_act(model, 0.1)
    return model.double().train()


def log_probs_and_gradients(model: Any, batch: TranscriptBatch) -> list[Tensor]:
    model.zero_grad()
    tokens = utterance_log_probs(model, batch, end_of_turn_id=2, chunk_tokens=7, ends=False).tokens
    (tokens * torch.arange(1, tokens.numel() + 1).view_as(tokens)).sum().backward()
    return [tokens.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    decoder = make_decoder(model, 3, 2)
    with decoder.ready():
        read = decoder.read(PROMPTS)
        return torch.stack([torch.stack([read[slot] for slot in PROMPTS]), decoder.step([0, 1, 2], [9, 10, 11])])
