"""Folding adapters in changes no output, and taking them out again changes no bit."""

from typing import Any

import pytest
import torch
from tiny import SHAPES, let_adapters_act, make_model

from lit_rft.models import FoldedAdapter, LoraSettings, acting_adapter
from lit_rft.models.backbone import add_lora

IDS = torch.arange(5, 40)[None]


def make_adapted(*more: str, architecture: str = "llama") -> Any:
    model: Any = add_lora(make_model(architecture), LoraSettings(4, 8, 0.0, "all-linear")).eval()
    for name in more:
        model.add_adapter(name, model.peft_config["default"])
    let_adapters_act(model)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("architecture", SHAPES)
def test_folded_equals_adapted_and_comes_out_to_the_bit(architecture: str) -> None:
    model = make_adapted(architecture=architecture)
    before, adapted = state(model), logits(model)
    folded = FoldedAdapter(model)
    q_proj = next(module for name, module in model.named_modules() if name.endswith("q_proj"))
    assert torch.equal(logits(model), adapted)
    with pytest.raises(RuntimeError), folded.active():
        assert q_proj.merged
        torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-4)
        raise RuntimeError
    assert not q_proj.merged
    assert torch.equal(logits(model), adapted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_of_two_adapters_acts() -> None:
    model = make_adapted("low")
    default = logits(model)
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    with acting_adapter(model, "low"):
        low = logits(model)
    assert not torch.allclose(low, default, atol=1e-2)
    assert trains == {name: p.requires_grad for name, p in model.named_parameters()}
    assert torch.equal(logits(model), default)
    with FoldedAdapter(model, "low").active():
        torch.testing.assert_close(logits(model), low, rtol=1e-4, atol=1e-4)
    with FoldedAdapter(model, "default").active():
        torch.testing.assert_close(logits(model), default, rtol=1e-4, atol=1e-4)


def test_a_model_without_adapters_is_left_alone() -> None:
    model = make_model()
    before = state(model)
    with FoldedAdapter(model).active(), acting_adapter(model, "low"):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
