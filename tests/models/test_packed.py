"""Packed weights give the same products, and follow the weights they were made of."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_rft.generation.decoder import Decoder
from lit_rft.generation.recompute import make_decoder
from lit_rft.models import MergedWeights, accelerate
from lit_rft.models.accel.operators import multiplies_bf16
from lit_rft.models.accel.packed_weights import Exchanged, PackedProducts
from lit_rft.testing.tiny import SHAPES, make_model, with_adapters

pytestmark = pytest.mark.skipif(not multiplies_bf16(), reason="this CPU does not multiply bf16")
PROMPTS = {0: [5, 6, 7], 1: list(range(8, 30)), 2: [40, 41]}


@torch.no_grad()
def steps(model: Any, packed: bool, **settings: Any) -> list[Tensor]:
    names = ["kv_cache", "decoding_attention"]
    accelerate(model, [*names, "packed_weights"] if packed else names)
    decoder = Decoder(model, 3, 2, **settings)
    with decoder.ready():
        read = decoder.read(PROMPTS)
        return [torch.stack([read[slot] for slot in PROMPTS]), *(decoder.step([0, 1, 2], [9, 10, n]) for n in range(4))]


@pytest.mark.parametrize("architecture", SHAPES)
def test_logits_are_the_same(architecture: str) -> None:
    model = make_model(architecture).bfloat16()
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.normal_(layer.bias)
    packed_layers = PackedProducts(model, 3)._layers
    assert len(packed_layers) == 2 * 7 + (type(model.get_output_embeddings()) is nn.Linear)
    for packed, default in zip(steps(model, True), steps(model, False), strict=True):
        torch.testing.assert_close(packed, default, rtol=2**-7, atol=2**-7)  # to the bit where this was written


@pytest.mark.parametrize("architecture", SHAPES)
def test_merged_adapters_are_packed_with_their_weights(architecture: str) -> None:
    model = with_adapters(make_model(architecture).bfloat16())
    acting = MergedWeights(model).active
    merged = steps(model, True, acting=acting)
    for packed, default in zip(merged, steps(model, False, acting=acting), strict=True):
        torch.testing.assert_close(packed, default, rtol=2**-7, atol=2**-7)
    with model.disable_adapter():
        assert (torch.stack(merged[1:]) - torch.stack(steps(model, True)[1:])).abs().max() > 0.1


def test_float32_weights_are_packed_as_autocast_has_them() -> None:
    """All weights train, under bf16-mixed."""
    model = make_model()
    acting = MergedWeights(model).active
    with torch.autocast("cpu", torch.bfloat16):
        default, packed = steps(model, False), steps(model, True, acting=acting)
    for actual, expected in zip(packed, default, strict=True):
        torch.testing.assert_close(actual, expected, rtol=2**-7, atol=2**-7)
    accelerate(model, ["packed_weights"])
    decoder = Decoder(model, 3, 2, acting=acting)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), decoder.ready():
        decoder.read(PROMPTS)
        assert all(packs._packed is not None for packs in decoder._products._layers.values())


@pytest.mark.parametrize("adapts", [True, False])
def test_inference_mode_changes_nothing(adapts: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Lightning evaluates in it. Adapters on bf16 weights, or float32 weights under autocast."""
    model = with_adapters(make_model().bfloat16()) if adapts else make_model()
    logits = []
    for mode in (torch.no_grad, torch.inference_mode):
        with torch.autocast("cpu", torch.bfloat16, enabled=not adapts), mode():
            acting = MergedWeights(model).active
            logits.append(torch.stack(steps(model, True, acting=acting)[1:]))
            assert type(make_decoder(model, 2, 2, acting=acting)) is Decoder
    assert torch.equal(*logits) and not [record for record in caplog.records if record.levelno >= logging.WARNING]


@torch.no_grad()
def test_a_weight_that_has_changed_is_packed_again_and_others_are_not() -> None:
    layers: Any = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).bfloat16()
    products, x = PackedProducts(layers, 4), torch.randn(4, 32).bfloat16()
    with products.active():
        before = layers(x)
    kept = products._layers[layers[1]]._packed
    for change in (
        lambda: layers[0].weight.mul_(2),  # as an optimiser does
        lambda: setattr(layers[0].weight, "data", torch.randn(32, 32).bfloat16()),  # as a merged adapter does
    ):
        change()
        with products.active():
            after = layers(x)
        assert torch.equal(after, layers(x)) and not torch.equal(after, before)
        assert products._layers[layers[1]]._packed is kept
        before = after


@torch.no_grad()
def test_only_bf16_linear_layers_are_packed_and_only_within() -> None:
    class Own(nn.Linear):
        pass

    layers: Any = nn.ModuleList([nn.Linear(8, 8), Own(8, 8).bfloat16(), nn.Linear(8, 8).bfloat16()])
    products = PackedProducts(layers, 1)
    with pytest.raises(RuntimeError, match="within"), products.active():
        assert ["forward" in vars(layer) for layer in layers] == [False, False, True]
        x = torch.randn(1, 8)
        with pytest.raises(RuntimeError, match="dtype"):
            layers[2](x)  # as without packing
        with torch.autocast("cpu", torch.bfloat16):
            assert layers[2](x).dtype == torch.bfloat16
        raise RuntimeError("within")
    assert all("forward" not in vars(layer) for layer in layers)


@torch.no_grad()
def test_a_forward_of_someone_else_is_left_alone_and_one_of_ours_comes_back() -> None:
    layers: Any = nn.ModuleList([nn.Linear(8, 8).bfloat16() for _ in range(2)])
    layers[0].forward = theirs = lambda x: x
    layers[1].forward = ours = Exchanged(lambda x: x)
    with PackedProducts(layers, 1).active():
        assert layers[0].forward is theirs
        assert layers[1].forward is not ours
    assert layers[1].forward is ours
