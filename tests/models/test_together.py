"""All that makes a training pass fast, at once: frozen layers in one piece, prompts read once or several transcripts in
a row, attention by blocks, log-probabilities in chunks, LoRA, bf16. Against one plain pass a transcript."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from lit_rft.models import LoraSettings, blockwise_attention, fused, shared_attention, utterance_log_probs
from lit_rft.models.backbone import add_lora, leave_casting_to_autocast
from lit_rft.models.packed import multiplies_bf16
from lit_rft.testing.tiny import SHAPES, let_adapters_act, make_groups, make_model
from lit_rft.transcripts import Transcript, TranscriptBatch, collate_packed, collate_padded, collate_shared

pytestmark = pytest.mark.skipif(not multiplies_bf16(), reason="this CPU does not multiply bf16")
GROUPS = make_groups((3, 1, 4))
ALL: list[Transcript] = [transcript for group in GROUPS for transcript in group]
LAYOUTS = {"shared prompts": collate_shared(GROUPS, 0), "several in a row": collate_packed(ALL, 0, 400)}


def make_adapted(architecture: str) -> Any:
    """Backbone in float32, with weights that bf16 can hold."""
    model = add_lora(make_model(architecture).bfloat16().float(), LoraSettings(4, 8, 0.0, "all-linear"))
    let_adapters_act(model, 0.1)
    return model.train()


def log_probs_and_gradients(model: Any, batches: list[TranscriptBatch], chunk_tokens: int) -> dict[str, Tensor]:
    """Log-probabilities by transcript, gradients by weight."""
    found: dict[str, Tensor] = {}
    for batch in batches:
        tokens = utterance_log_probs(
            model, batch, end_of_turn_id=2, chunk_tokens=chunk_tokens, ends=False
        ).tokens  # fmt: skip
        for owner, row, mask in zip(batch.transcript_index.tolist(), tokens, batch.utterance_mask, strict=True):
            found[batch.transcripts[owner].episode_id] = row[mask]
    sum((k + 1) * found[name].sum() for k, name in enumerate(sorted(found))).backward()  # type: ignore[union-attr]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {name: row.detach() for name, row in found.items()} | gradients


def watched(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Mock:
    """The function as it is, and how often it is called."""
    mock = Mock(wraps=getattr(module, name))
    monkeypatch.setattr(module, name, mock)
    return mock


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", SHAPES)
def test_no_further_off_than_plain_passes(architecture: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, model = [collate_padded([one], 0) for one in ALL], make_adapted(architecture)
    true = log_probs_and_gradients(model, alone, 1000)
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    leave_casting_to_autocast(model)
    with torch.autocast("cpu", torch.bfloat16):
        monkeypatch.setattr(blockwise_attention, "is_served", lambda *_: False)
        plain = log_probs_and_gradients(model, alone, 1000)
        monkeypatch.undo()
        fused.fuse(model)
        in_one_piece = watched(monkeypatch, fused, "frozen_linear")
        where = {"shared prompts": shared_attention, "several in a row": blockwise_attention}[layout]
        by_blocks = watched(monkeypatch, where, "blockwise_attention")
        fast = log_probs_and_gradients(model, [LAYOUTS[layout]], 5)
    assert in_one_piece.call_count == 2 * 7 and by_blocks.call_count == 2
    assert plain.keys() == true.keys() == fast.keys() and len(true) == len(ALL) + 2 * 2 * 7
    errors = [torch.stack([(found[n] - true[n]).norm() / true[n].norm() for n in true]) for found in (plain, fast)]
    assert 0 < errors[1].mean() < 1.3 * errors[0].mean(), errors
    assert (errors[1] < 2.5 * errors[0]).float().mean() > 0.9, errors
    assert nn.functional.cosine_similarity(*(_flat(found) for found in (fast, true)), dim=0) > 0.99


def _flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.float().flatten() for name, value in sorted(found.items()) if "lora" in name])
