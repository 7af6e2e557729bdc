"""Fused decoder layers of sampling: the default outputs, for layers like Llama's, with weights that change."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from lit_rft.generation.decoder import Decoder
from lit_rft.models import FAST_PATHS, MergedWeights, accelerate
from lit_rft.models.accel.decoding_layers import DecodingLayers
from lit_rft.models.accel.operators import multiplies_bf16
from lit_rft.models.accel.packed_weights import Exchanged
from lit_rft.testing.tiny import SHAPES, make_model, with_adapters

pytestmark = pytest.mark.skipif(not multiplies_bf16(), reason="this CPU does not multiply bf16")
PROMPTS = {0: [5, 6, 7], 1: list(range(8, 30)), 2: [40, 41]}
LLAMAS = [name for name in SHAPES if name != "gemma"]


def make(architecture: str = "llama") -> Any:
    model = make_model(architecture).bfloat16().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
        if type(module).__name__.endswith("RMSNorm"):
            nn.init.normal_(module.weight, 1.0, 0.2)
    return model


@torch.no_grad()
def steps(model: Any, fused: bool, **settings: Any) -> Tensor:
    """Logits [5, 3, V] of a prefill with padding, and of four steps."""
    accelerate(model, [name for name in FAST_PATHS if fused or name != "fused_decoding"])
    decoder = Decoder(model, 3, 2, **settings)
    with decoder.ready():
        read = decoder.read(PROMPTS)
        logits = [torch.stack([read[slot] for slot in PROMPTS])]
        return torch.stack([*logits, *(decoder.step([0, 1, 2], [9, 10, n]) for n in range(4))])


def error(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).norm() / expected.norm())


def fused_layers(model: Any) -> int:
    """Count the layers that are fused within a decoder."""
    accelerate(model)
    with torch.no_grad(), DecodingLayers(model, 3).active():
        return sum(isinstance(vars(layer).get("forward"), Exchanged) for layer in model.get_decoder().layers)


@pytest.mark.parametrize("architecture", LLAMAS)
def test_errors_are_no_larger_than_by_default(architecture: str) -> None:
    model = make(architecture)
    default, fused = steps(model, False), steps(model, True)
    assert not torch.equal(default, fused)  # it is rounded less often
    exact = steps(model.float(), False)
    assert error(fused, exact) < min(0.02, 1.1 * error(default, exact))


def test_layers_of_other_kinds_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert [fused_layers(make(name)) for name in LLAMAS] == [2, 2, 2]
    gemma = make("gemma")
    assert fused_layers(gemma) == 0
    assert torch.equal(steps(gemma, True), steps(gemma, False))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_layer_with_other_computations_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Helium's layers have the same parts, and other rotations."""
    model = make()
    rotate = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: rotate(q, k, cos, -sin))
    assert torch.equal(steps(model, True), steps(model, False))
    assert "samples with the default decoder layers, which is slower: its outputs differ" in caplog.text


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("smollm3", {"no_rope_layers": [1, 0]}),
        ("ministral3", {"rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 8192,
        }}),
        ("granite", {"residual_multiplier": 0.98}),
    ],
)  # fmt: skip
def test_layers_that_compute_more_than_llamas_are_left_alone(architecture: str, options: dict[str, Any]) -> None:
    """A few tokens would not show it: positions without a rotation, late queries, a factor near 1."""
    model = make_model(architecture, **options).bfloat16()
    assert fused_layers(model) == 0 and torch.equal(steps(model, True), steps(model, False))


@pytest.mark.parametrize("architecture", LLAMAS)
def test_merged_adapters_act(architecture: str) -> None:
    model = with_adapters(make(architecture))
    acting = MergedWeights(model).active
    fused, default = steps(model, True, acting=acting), steps(model, False, acting=acting)
    with model.disable_adapter():
        without = steps(model, True)
        assert error(without, steps(model, False)) < 0.1
    assert not torch.equal(fused, default) and error(fused, default) < 0.1 < 0.5 < error(without, fused)


def test_adapters_that_are_not_merged_are_computed_by_default() -> None:
    model = with_adapters(make())
    assert torch.equal(steps(model, True), steps(model, False))


def test_weights_that_change_are_packed_again() -> None:
    model = make()
    accelerate(model)
    decoder = Decoder(model, 3, 2)

    def logits() -> Tensor:
        for slot in PROMPTS:
            decoder.cache.clear(slot)
        with torch.no_grad(), decoder.ready():
            read = decoder.read(PROMPTS)
            return torch.stack([read[slot] for slot in PROMPTS])

    before = logits()
    layer = model.model.layers[0]
    for linear in (*layer.self_attn.children(), layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
        with torch.no_grad():
            linear.weight.mul_(-1.5)  # as an optimiser does
        after = logits()
        assert error(after, steps(model, False)[0]) < 0.1 < 0.2 < error(after, before), linear
        before = after


def test_layers_come_back_and_those_of_someone_else_are_left_alone() -> None:
    model = make()
    first, second = model.model.layers
    first.forward = theirs = first.forward
    with pytest.raises(RuntimeError, match="within"), torch.no_grad(), DecodingLayers(model, 3).active():
        assert first.forward is theirs and isinstance(second.forward, Exchanged)
        raise RuntimeError("within")
    assert first.forward is theirs and "forward" not in vars(second)


@pytest.mark.parametrize("missing", ["fused_decoding", "packed_weights", "decoding_attention"])
def test_each_path_that_it_needs_switches_it_off(missing: str) -> None:
    model = make()
    accelerate(model, [name for name in FAST_PATHS if name != missing])
    with torch.no_grad(), DecodingLayers(model, 3).active():
        assert not [layer for layer in model.model.layers if "forward" in vars(layer)]


def test_it_serves_bf16_only() -> None:
    model = make_model().eval()
    assert torch.equal(steps(model, True), steps(model, False))
    with torch.autocast("cpu", torch.bfloat16):  # float32 weights are cast, not packed
        assert torch.equal(steps(model, True), steps(model, False))
