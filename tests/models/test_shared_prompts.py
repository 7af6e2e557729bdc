"""Completions that share a prompt: one row with positions and attention of its own equals a separate pass each."""

import contextlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_rft.models import utterance_log_probs
from lit_rft.models.accel import can_share_prompts, layouts, shared_prompts
from lit_rft.models.attention_masks import attention_masks
from lit_rft.models.backbone import load_backbone
from lit_rft.models.forward import hidden_states
from lit_rft.testing.tiny import make_groups, make_model, with_adapters
from lit_rft.transcripts import (
    TranscriptBatch,
    collate_padded,
    collate_shared,
    count_utterances,
    shared_step_batch,
    split_shared,
)

# windows shorter than prompt and completion together
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 12},
    "gemma3_text": {"sliding_window": 12},
    "mistral": {"sliding_window": 12},
}


def _rows(model: Any, batch: TranscriptBatch, chunk_tokens: int = 256) -> dict[str, torch.Tensor]:
    """Log-probabilities and entropies by name."""
    log_probs = utterance_log_probs(model, batch, end_of_turn_id=2, entropy=True, chunk_tokens=chunk_tokens)
    rows = zip(batch.transcript_index.tolist(), batch.utterance_mask, log_probs.tokens, log_probs.entropy, strict=True)
    return {
        batch.transcripts[owner].episode_id: torch.stack([tokens[mask], entropy[mask]])
        for owner, mask, tokens, entropy in rows
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True])
def test_log_probs_and_gradients_equal_separate_passes(architecture: str, lora: bool) -> None:
    groups = make_groups()

    def run(batches: list[TranscriptBatch], chunk_tokens: int) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        model = make_model(architecture, **ARCHITECTURES[architecture])
        if lora:
            model = with_adapters(model)
        model = model.double().train()
        rows: dict[str, torch.Tensor] = {}
        for batch in batches:
            rows |= _rows(model, batch, chunk_tokens)
        sum((k + 1) * rows[name].sum() for k, name in enumerate(sorted(rows))).backward()
        return rows, [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]

    plain = run([collate_padded([t], 0) for group in groups for t in group], 256)
    shared = run([collate_shared(groups, 0)], 5)
    assert plain[0].keys() == shared[0].keys()
    for name, row in plain[0].items():
        torch.testing.assert_close(shared[0][name], row, rtol=1e-6, atol=1e-8)
    assert len(plain[1]) == len(shared[1]) > 0
    for a, b in zip(plain[1], shared[1], strict=True):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max() + 1e-6  # norms and rotations are float32 inside


def test_long_groups_are_split_and_nothing_is_lost() -> None:
    groups = make_groups((8, 8, 2))
    micro_batches = split_shared(groups, 60)
    rows = [row for micro in micro_batches for row in micro]
    names = sorted(t.episode_id for row in rows for t in row)
    assert names == sorted(t.episode_id for group in groups for t in group)
    for micro in micro_batches:
        batch = collate_shared(micro, 0)
        assert batch.input_ids.numel() <= 60 and batch.utterance_mask.numel() <= 60
    short = [row for micro in split_shared(groups, 200, 40) for row in micro]
    assert all(len(row) == 1 or collate_shared([row], 0).input_ids.numel() <= 40 for row in short)
    assert len(short) > len([row for micro in split_shared(groups, 200) for row in micro])
    singles = split_shared(groups, 1)  # a completion longer than the budget gets a pass of its own
    assert all(len(micro) == 1 and len(micro[0]) == 1 for micro in singles)
    model = make_model()
    numbers = count_utterances([t for group in groups for t in group])
    expected = _rows(model, collate_shared(groups, 0))
    for micro in shared_step_batch(groups, numbers, micro_batch_tokens=60, pad_id=0).micro_batches:
        for name, row in _rows(model, micro).items():
            torch.testing.assert_close(row, expected[name], rtol=1e-4, atol=1e-4)


def test_a_row_of_several_prompts_is_refused() -> None:
    a, b, _ = make_groups()
    with pytest.raises(ValueError, match="completions of one prompt in a row, got 2 prompts in 4 transcripts"):
        collate_shared([[*a, *b]], 0)
    with pytest.raises(ValueError, match="at least one transcript"):
        collate_shared([], 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_these_can_share(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert can_share_prompts(make_model(architecture, **ARCHITECTURES[architecture]).to(dtype))
    assert not caplog.records


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("mamba", {"state_size": 4}),  # a recurrence runs through all completions
        ("bloom", {}),  # positions that come out of the mask are not ours
        ("qwen2_moe", {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 2}),  # only in the mask
        (
            "gpt_neo",
            {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
        ),  # in a way of its own
    ],
)
def test_others_cannot_and_one_warning_says_why(
    architecture: str, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(architecture, **settings)
    with caplog.at_level(logging.WARNING, "lit_rft"):
        assert not can_share_prompts(model)
    (warning,) = [record for record in caplog.records if record.name.startswith("lit_rft")]
    assert "recomputes the prompt for each completion" in warning.message


def test_masks_know_windows_and_chunks() -> None:
    seen, places = torch.ones(1, 6, 6, dtype=torch.bool).tril(), torch.arange(6)
    kinds = ["full_attention", "sliding_attention", "chunked_attention"]
    config = SimpleNamespace(layer_types=kinds, sliding_window=2, attention_chunk_size=4)
    masks = attention_masks(seen, places[None], places, config, torch.float32)
    first = {kind: (mask[0, 0] == 0).int().argmax(-1).tolist() for kind, mask in masks.items()}  # key of each query
    assert first == {
        "full_attention": [0] * 6, "sliding_attention": [0, 0, 1, 2, 3, 4], "chunked_attention": [0, 0, 0, 0, 4, 4]
    }  # fmt: skip
    config.layer_types = ["linear_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        attention_masks(seen, places[None], places, config, torch.float32)


def test_a_model_whose_outputs_differ_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the model's own attention, not ours."""
    model = make_model()
    monkeypatch.setattr(shared_prompts, "shared_prompt_attention", lambda model: contextlib.nullcontext())
    monkeypatch.setattr(layouts, "_windowed_layers", lambda lm: 0)
    assert not can_share_prompts(model)


def test_layers_that_are_computed_again_have_the_same_attention(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = load_backbone(str(tmp_path), gradient_checkpointing=checkpointing).double().train()
        sum(row.sum() for row in _rows(model, collate_shared(make_groups(), 0)).values()).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for recomputed, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(recomputed, expected, rtol=1e-12, atol=1e-12)


def test_rows_of_one_completion_are_padded() -> None:
    """They share nothing, and plain causal attention needs no mask."""
    groups = make_groups((1, 4, 1))
    numbers = count_utterances([t for group in groups for t in group])
    model = make_model()
    shared = _rows(model, collate_shared(groups, 0))
    for max_tokens, layouts_expected in ((1, {False}), (60, {False, True})):
        batches = shared_step_batch(groups, numbers, micro_batch_tokens=max_tokens, pad_id=0).micro_batches
        assert {batch.segments is not None for batch in batches} == layouts_expected
        assert all(batch.segments is not None or len(batch.input_ids) == len(batch.transcripts) for batch in batches)
        rows: dict[str, torch.Tensor] = {}
        for batch in batches:
            rows |= _rows(model, batch)
        assert rows.keys() == shared.keys()
        for name, row in rows.items():
            torch.testing.assert_close(row, shared[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("autocast", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_kernels_take_the_mask_as_it_is(autocast: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the data type that they compute in, with aligned rows: none is converted or copied in each layer."""
    masks = []

    def attention_of_completions(query: Any, key: Any, value: Any, mask: torch.Tensor, *rest: Any, **more: Any) -> Any:
        masks.append(mask)
        assert mask.shape[-1] == key.shape[2]
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, *rest, **more)

    monkeypatch.setattr(shared_prompts, "scaled_dot_product_attention", attention_of_completions)
    monkeypatch.setattr(shared_prompts, "is_supported", lambda *_: False)
    model = make_model()
    batch = collate_shared(make_groups(), 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _rows(model, batch)
    assert len(masks) == 2 and masks[0] is masks[1]  # one for all layers
    assert masks[0].dtype == dtype and masks[0].shape[-1] % 8
    assert all(stride % 8 == 0 for stride in masks[0].stride()[:-1])


def test_no_layer_waits_for_the_device() -> None:
    """Sizes that depend on data, for which the host waits for the GPU, are computed once per batch."""

    class DataDependent(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            aten = torch.ops.aten
            indices = args[1] if func in (aten.index.Tensor, aten.index_put.default) else []
            by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
            self.number += by_mask or func in (aten.nonzero.default, aten._local_scalar_dense.default)
            return func(*args, **(kwargs or {}))

    def waits(layers: int) -> int:
        model, batch = make_model(num_hidden_layers=layers), collate_shared(make_groups(), 0)
        with DataDependent() as counter:
            hidden_states(model, batch)
        return counter.number

    assert 0 < waits(1) == waits(3)
