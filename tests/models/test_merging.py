"""Folding adapters in changes no output, and taking them out again changes no bit."""

from typing import Any

import pytest
import torch

from lit_rft.models import LoraSettings, MergedWeights, use_adapter
from lit_rft.models.backbone import add_lora
from lit_rft.testing.tiny import SHAPES, let_adapters_act, make_model

IDS = torch.arange(5, 40)[None]


def make_adapted(*more: str, architecture: str = "llama") -> Any:
    model: Any = add_lora(make_model(architecture), LoraSettings(4, 8, 0.0, "all-linear")).eval()
    for name in more:
        model.add_adapter(name, model.peft_config["default"])
    let_adapters_act(model)
    return model


def is_adapted(layer: Any) -> bool:
    return hasattr(layer, "lora_A") and hasattr(layer, "base_layer")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("architecture", [*SHAPES, "qwen2_moe"])  # one module of experts has several adapters
def test_merged_equals_adapted_and_comes_out_to_the_bit(architecture: str) -> None:
    model = make_adapted(architecture=architecture)
    before, adapted = state(model), logits(model)
    merged = MergedWeights(model)
    q_proj = next(module for name, module in model.named_modules() if name.endswith("q_proj"))
    assert torch.equal(logits(model), adapted)
    with pytest.raises(RuntimeError), merged.active():
        assert q_proj.merged
        torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-4)
        raise RuntimeError
    assert not q_proj.merged
    assert torch.equal(logits(model), adapted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_of_tied_weights_only_the_adapted_ones_change(target: str) -> None:
    """Embedding and output layer are one weight."""
    model: Any = add_lora(make_model(tie_word_embeddings=True), LoraSettings(4, 8, 0.0, ["q_proj", target])).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # an embedding's adapter begins with other zeros
            torch.nn.init.normal_(parameter, std=0.3)
    before, adapted = state(model), logits(model)
    with MergedWeights(model).active():
        torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), adapted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert getattr(head, "base_layer", head).weight is getattr(embedding, "base_layer", embedding).weight


@pytest.mark.parametrize("adapts", [False, True])
def test_under_autocast_float32_weights_are_cast_once(adapts: bool) -> None:
    model: Any = make_adapted() if adapts else make_model()
    linear = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
    weights = MergedWeights(model)
    with weights.active():
        assert all(layer.weight.dtype == torch.float32 for layer in linear)
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(model)
        with weights.active():
            cast = [layer for layer in linear if layer.weight.dtype == torch.bfloat16]
            cast_logits = logits(model)
            first = cast[0].weight
        with weights.active():
            assert cast[0].weight is first
            rounded = [layer.weight for layer in cast]
    assert len(cast) == 2 * 7 + 1  # adapters are not needed while they are merged
    assert all(layer.weight.dtype == torch.float32 for layer in linear)
    if not adapts:
        torch.testing.assert_close(cast_logits, expected, rtol=0, atol=0)
        return
    deltas = {layer.base_layer: layer.get_delta_weight("default") for layer in model.modules() if is_adapted(layer)}
    for layer, weight in zip(cast, rounded, strict=True):  # merged before it is rounded
        assert torch.equal(weight, (layer.weight + deltas.get(layer, 0.0)).bfloat16())


def test_one_of_two_adapters_acts() -> None:
    model = make_adapted("low")
    default = logits(model)
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    with use_adapter(model, "low"):
        low = logits(model)
    assert not torch.allclose(low, default, atol=1e-2)
    assert trains == {name: p.requires_grad for name, p in model.named_parameters()}
    assert torch.equal(logits(model), default)
    with MergedWeights(model, "low").active():
        torch.testing.assert_close(logits(model), low, rtol=1e-4, atol=1e-4)
    with MergedWeights(model, "default").active():
        torch.testing.assert_close(logits(model), default, rtol=1e-4, atol=1e-4)


def test_a_model_without_adapters_is_left_alone() -> None:
    model = make_model()
    before = state(model)
    with MergedWeights(model).active(), use_adapter(model, "low"):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
