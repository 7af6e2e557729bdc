"""All fast paths of training at once (fused layers, shared prompts or packed sequences, blockwise attention, chunked
log-probabilities, LoRA, bf16), against one default pass per transcript."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from lit_rft.models import LoraSettings, accelerate, utterance_log_probs
from lit_rft.models.accel import blockwise_attention, fused_layers, shared_prompts
from lit_rft.models.accel.operators import multiplies_bf16
from lit_rft.models.backbone import add_lora, leave_casting_to_autocast
from lit_rft.testing.tiny import SHAPES, let_adapters_act, make_groups, make_model
from lit_rft.transcripts import Transcript, TranscriptBatch, collate_packed, collate_padded, collate_shared

pytestmark = pytest.mark.skipif(not multiplies_bf16(), reason="this CPU does not multiply bf16")
GROUPS = make_groups((3, 1, 4))
ALL: list[Transcript] = [transcript for group in GROUPS for transcript in group]
LAYOUTS = {"shared prompts": collate_shared(GROUPS, 0), "packed": collate_packed(ALL, 0, 400)}


def make_adapted(architecture: str) -> Any:
    """Backbone in float32, with weights that bf16 can hold."""
    model = add_lora(make_model(architecture).bfloat16().float(), LoraSettings(4, 8, 0.0, "all-linear"))
    let_adapters_act(model, 0.1)
    return model.train()


def log_probs_and_gradients(model: Any, batches: list[TranscriptBatch], chunk_tokens: int) -> dict[str, Tensor]:
    """Log-probabilities by transcript, gradients by weight."""
    log_probs: dict[str, Tensor] = {}
    for batch in batches:
        tokens = utterance_log_probs(
            model, batch, end_of_turn_id=2, chunk_tokens=chunk_tokens, ends=False
        ).tokens  # fmt: skip
        for owner, row, mask in zip(batch.transcript_index.tolist(), tokens, batch.utterance_mask, strict=True):
            log_probs[batch.transcripts[owner].episode_id] = row[mask]
    sum((k + 1) * log_probs[name].sum() for k, name in enumerate(sorted(log_probs))).backward()  # type: ignore[union-attr]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {name: row.detach() for name, row in log_probs.items()} | gradients


def watched(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Mock:
    """Wrap a function, to count its calls."""
    mock = Mock(wraps=getattr(module, name))
    monkeypatch.setattr(module, name, mock)
    return mock


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", SHAPES)
def test_errors_are_no_larger_than_by_default(architecture: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    separate, model = [collate_padded([transcript], 0) for transcript in ALL], make_adapted(architecture)
    true = log_probs_and_gradients(model, separate, 1000)
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    leave_casting_to_autocast(model)
    with torch.autocast("cpu", torch.bfloat16):
        accelerate(model, "off")
        default = log_probs_and_gradients(model, separate, 1000)
        accelerate(model)
        fused = watched(monkeypatch, fused_layers, "frozen_linear")
        where = {"shared prompts": shared_prompts, "packed": blockwise_attention}[layout]
        blockwise = watched(monkeypatch, where, "blockwise_attention")
        fast = log_probs_and_gradients(model, [LAYOUTS[layout]], 5)
    assert fused.call_count == 2 * 7 and blockwise.call_count == 2
    assert default.keys() == true.keys() == fast.keys() and len(true) == len(ALL) + 2 * 2 * 7
    errors = [torch.stack([(result[n] - true[n]).norm() / true[n].norm() for n in true]) for result in (default, fast)]
    assert 0 < errors[1].mean() < 1.3 * errors[0].mean(), errors
    assert (errors[1] < 2.5 * errors[0]).float().mean() > 0.9, errors
    assert nn.functional.cosine_similarity(*(_flat(result) for result in (fast, true)), dim=0) > 0.99


def _flat(results: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.float().flatten() for name, value in sorted(results.items()) if "lora" in name])
