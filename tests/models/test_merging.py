"""Folding adapters in changes no output, and taking them out again changes no bit."""

import torch
from tiny import make_model

from lit_rft.models import LoraSettings, MergedAdapters
from lit_rft.models.backbone import add_lora


def test_merged_equals_adapted_and_restores_to_the_bit() -> None:
    model = add_lora(make_model(), LoraSettings(4, 8, 0.0, "all-linear")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        merged = MergedAdapters(model)
        q_proj = next(module for name, module in model.named_modules() if name.endswith("q_proj"))
        assert q_proj.merged
        torch.testing.assert_close(model(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-4)
        merged.restore()
        assert not q_proj.merged
        assert torch.equal(model(input_ids=ids).logits, adapted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_adapters_is_left_alone() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    MergedAdapters(model).restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
