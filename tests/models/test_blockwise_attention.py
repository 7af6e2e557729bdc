"""Blockwise attention equals sdpa: outputs, gradients, and models in every layout."""

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lit_rft.models import accelerate, utterance_log_probs
from lit_rft.models.accel import blockwise_attention, layouts, shared_prompts
from lit_rft.models.accel.operators import multiplies_bf16
from lit_rft.models.backbone import causal_lm
from lit_rft.testing.tiny import make_groups, make_model, with_adapters
from lit_rft.transcripts import TranscriptBatch, collate_packed, collate_padded, collate_shared

MIXED = ["sliding_attention", "full_attention"]
ONLY_IN_MASKS = {"use_sliding_window": True, "max_window_layers": 2}  # its attention does not receive its window
# name, settings, and the layouts in which blocks are supported (in some layers): several packed rows need masks, which
# blocks do not take; some windows are shorter than these sequences
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "llama": ("llama", {}, {"padded", "row", "shared"}),
    "qwen2": ("qwen2", {}, {"padded", "row", "shared"}),
    "gemma": ("gemma", {}, {"padded", "row", "shared"}),
    "gemma3": ("gemma3_text", {"sliding_window": 4096, "layer_types": MIXED}, {"padded", "row", "shared"}),
    "gemma3, short window": ("gemma3_text", {"sliding_window": 12, "layer_types": MIXED}, {"shared"}),
    "mistral": ("mistral", {"sliding_window": 4096}, {"padded", "row", "shared"}),
    "mistral, short window": ("mistral", {"sliding_window": 12}, set()),
    "qwen2_moe, short window": ("qwen2_moe", {"sliding_window": 12, **ONLY_IN_MASKS}, set()),
}


def make_parts(length: int, prefix: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(length)
    shapes = ((2, 6, length, 8), (2, 3, prefix + length, 8), (2, 3, prefix + length, 8))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def reference(query: Any, key: Any, value: Any, scale: float | None, hidden: Any) -> torch.Tensor:
    length, seen = query.shape[2], key.shape[2]
    visible = torch.ones(length, seen, dtype=torch.bool).tril(seen - length).expand(2, 1, -1, -1).clone()
    if hidden is not None:
        visible[..., : hidden.shape[1]] &= ~hidden[:, None, None]
    return scaled_dot_product_attention(query, key, value, visible, scale=scale, enable_gqa=True)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
@pytest.mark.parametrize(("prefix", "hides"), [(0, False), (9, False), (9, True)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_blocks_equal_the_reference(length: int, prefix: int, hides: bool, scale: float | None) -> None:
    parts = make_parts(length, prefix)
    hidden = torch.arange(prefix) >= torch.tensor([[prefix], [4]]) if hides else None
    expected = reference(*parts, scale, hidden)
    actual = blockwise_attention.blockwise_attention(*parts, scale, hidden)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected)
    gradients = (torch.autograd.grad(out, parts, weight, retain_graph=True) for out in (actual, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not multiplies_bf16(), reason="this CPU does not multiply bf16")
def test_in_bf16_it_is_no_further_off_than_the_fused_kernel() -> None:
    parts = make_parts(200, 0)
    weight = torch.randn(2, 6, 200, 8, dtype=torch.float64)
    true = [expected := reference(*parts, None, None), *torch.autograd.grad(expected, parts, weight)]
    rounded = [part.detach().bfloat16().requires_grad_() for part in parts]
    off = []
    for attention in (blockwise_attention.blockwise_attention, fused):
        with torch.autocast("cpu", torch.bfloat16):
            out = attention(*rounded)
        assert out.dtype == torch.bfloat16
        actual = [out, *torch.autograd.grad(out, rounded, weight.bfloat16())]
        off.append([float(((a.double() - b).norm() / b.norm()).detach()) for a, b in zip(actual, true, strict=True)])
    assert all(ours < 0.01 and ours < 2.5 * theirs for ours, theirs in zip(*off, strict=True)), off


def fused(query: Any, key: Any, value: Any) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def log_probs_and_gradients(
    architecture: str, settings: dict[str, Any], lora: bool, batch: TranscriptBatch, blocks: bool
) -> list[torch.Tensor]:
    model = make_model(architecture, **settings)
    if lora:
        model = with_adapters(model)
    model = model.to(torch.float32 if architecture == "qwen2_moe" else torch.float64).train()  # as its experts are
    layouts_only = ["packed_sequences", "shared_prompts"]
    accelerate(model, [*layouts_only, "blockwise_attention"] if blocks else layouts_only)
    assert causal_lm(model).config._attn_implementation == "sdpa"
    tokens = utterance_log_probs(model, batch, end_of_turn_id=2).tokens
    (tokens * torch.arange(1, tokens.numel() + 1).view_as(tokens)).sum().backward()
    assert causal_lm(model).config._attn_implementation == "sdpa"
    return [tokens, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("layout", ["padded", "packed", "row", "shared"])
def test_outputs_of_models_match(case: str, lora: bool, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, settings, served = CASES[case]
    if layout == "shared" and architecture == "qwen2_moe":
        pytest.skip("it does not support shared prompts")
    groups = make_groups()
    flat = [transcript for group in groups for transcript in group]
    make = {
        "padded": collate_padded, "packed": lambda transcripts, pad: collate_packed(transcripts, pad, 60),
        "row": lambda transcripts, pad: collate_packed(transcripts, pad, 9999), "shared": collate_shared,
    }  # fmt: skip
    batch = make[layout](groups if layout == "shared" else flat, 0)
    assert (len(batch.input_ids) == 1) == (layout == "row")
    calls = []

    def serves(query: Any, dropout: float, sliding_window: int | None, length: int) -> bool:
        calls.append(sliding_window is None or sliding_window >= length)
        return calls[-1]

    for module in (blockwise_attention, shared_prompts):
        monkeypatch.setattr(module, "is_supported", serves)
    default = log_probs_and_gradients(architecture, settings, lora, batch, False)
    assert not calls
    blocks = log_probs_and_gradients(architecture, settings, lora, batch, True)
    assert any(calls) == (layout in served)
    for actual, expected in zip(blocks, default, strict=True):
        tolerance = {"rtol": 1e-8, "atol": 1e-10} if actual.dtype == torch.float64 else {}
        torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.parametrize("starts", [(0, 5), (0, 1, 64, 100, 149)])
@pytest.mark.parametrize("window", [None, 7])
def test_packed_sequences_equal_separate_ones(starts: tuple[int, ...], window: int | None) -> None:
    """By blocks and, where they are not supported, by a mask."""
    query, key, value = make_parts(150, 0)
    ends = (*starts[1:], 150)
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    separate = [
        blockwise_attention.attend(
            module, *(part[:, :, a:b] for part in (query, key, value)), None, sliding_window=window
        )[0]
        for a, b in zip(starts, ends, strict=True)
    ]  # fmt: skip
    expected = torch.cat(separate, dim=1)
    masked, _ = blockwise_attention.attend_packed(
        module, query, key, value, None, sliding_window=window, sequence_starts=starts
    )
    outputs = [masked]
    if window is None:
        outputs.append(blockwise_attention.blockwise_attention(query, key, value, starts=starts).transpose(1, 2))
    weight = torch.randn_like(expected)
    true = torch.autograd.grad(expected, (query, key, value), weight)
    for out in outputs:
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(torch.autograd.grad(out, (query, key, value), weight), true, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_an_architecture_that_loses_the_starts_raises() -> None:
    with pytest.raises(TypeError, match="disable packing"):
        blockwise_attention.attend_packed(None, *make_parts(4, 0), None)


def test_blocks_support_bf16_on_a_cpu_without_dropout_and_short_windows() -> None:
    query = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16)
    assert blockwise_attention.is_supported(query, 0.0, None, 9) == multiplies_bf16()
    assert blockwise_attention.is_supported(query, 0.0, 9, 9) == multiplies_bf16()
    assert not blockwise_attention.is_supported(query, 0.0, 8, 9)
    assert not blockwise_attention.is_supported(query, 0.1, None, 9)
    assert not blockwise_attention.is_supported(query.float(), 0.0, None, 9)
    assert not blockwise_attention.is_supported(query.to("meta"), 0.0, None, 9)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("doge", "its outputs differ"),  # it adds to masks of its own, which are not causal without one of theirs
        ("llama", "it cannot take another"),
    ],
)
@pytest.mark.parametrize("row", [False, True])
def test_an_architecture_with_special_attention_keeps_it(
    architecture: str, reason: str, row: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(architecture)
    if architecture == "llama":
        monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    flat = [transcript for group in make_groups() for transcript in group]
    batch = collate_packed(flat, 0, 9999) if row else collate_padded(flat, 0)
    separate = [collate_padded([transcript], 0) for transcript in batch.transcripts]
    rows, *expected = [utterance_log_probs(model, part, end_of_turn_id=2).tokens for part in (batch, *separate)]
    for row, alone in zip(rows, expected, strict=True):
        torch.testing.assert_close(row[: alone.shape[1]], alone[0], rtol=1e-4, atol=1e-4)
    messages = [record.message for record in caplog.records if "keeps its own attention" in record.message]
    assert messages == [f"{type(model).__name__} keeps its own attention, which is slower on a CPU: {reason}"]


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        (blockwise_attention._BLOCKWISE, blockwise_attention.attend),
        (blockwise_attention._PACKED, blockwise_attention.attend_packed),
    ],
)
def test_outputs_by_blocks_are_compared_with_those_of_the_model(name: str, attention: Any) -> None:
    def sees_everything(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2), None

    assert layouts.can_attend_blockwise(make_model())
    AttentionInterface.register(name, sees_everything)
    try:
        assert not layouts.can_attend_blockwise(make_model())
    finally:
        AttentionInterface.register(name, attention)
