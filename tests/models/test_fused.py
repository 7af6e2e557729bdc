"""Fused frozen layers have the outputs and gradients of separate ones, and are used only where they are supported."""

import copy
import functools
import logging
from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lit_rft.models import LoraSettings, MergedWeights, accelerate, utterance_log_probs
from lit_rft.models.accel import fused_layers
from lit_rft.models.accel.operators import multiplies_bf16
from lit_rft.models.accel.packed_weights import PackedWeights
from lit_rft.models.backbone import _as_in_forward_pass, add_lora, causal_lm, leave_casting_to_autocast
from lit_rft.testing.tiny import SHAPES, let_adapters_act, make_groups, make_model
from lit_rft.transcripts import collate_padded

NORMS = {"llama": True, "qwen2": True, "gemma": False, "mistral": True}  # Gemma adds 1 to its weight


def randoms(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("adapts", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_a_frozen_linear_layer(bias: bool, adapts: bool, drops: bool) -> None:
    torch.manual_seed(0)
    x, seen, a, b = randoms(2, 5, 6), randoms(2, 5, 6), randoms(3, 6), randoms(4, 3)
    weight, shift = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64) if bias else None
    expected = x @ weight.T + (shift if shift is not None else 0)
    if adapts:
        expected = expected + 0.7 * ((seen if drops else x) @ a.T @ b.T)
    adapter = fused_layers.Adapter(a, b, 0.7, seen if drops else None) if adapts else None
    actual = fused_layers.frozen_linear(x, weight, shift, adapter)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    slope = torch.randn_like(expected)
    inputs = (x, a, b, seen) if adapts and drops else (x, a, b) if adapts else (x,)
    gradients = (torch.autograd.grad(out, inputs, slope) for out in (actual, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not multiplies_bf16(), reason="this CPU does not multiply bf16")
def test_outputs_may_be_changed_in_place() -> None:
    """As Gemma 3n does."""
    torch.manual_seed(0)
    weight = torch.randn(32, 16).bfloat16()
    packs = fused_layers.Packs(PackedWeights(6), PackedWeights(6, transposed=True))
    gradients = []
    for in_place in (True, False):
        x = torch.linspace(-1, 1, 96).view(2, 3, 16).bfloat16().requires_grad_()
        out = fused_layers.frozen_linear(x, weight, None, packs=packs)
        (out.mul_(2) if in_place else out * 2).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_a_norm() -> None:
    torch.manual_seed(0)
    x, weight = randoms(2, 3, 8), torch.randn(8, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weight
    torch.testing.assert_close(fused_layers.rms_norm(x, weight, 1e-2), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: fused_layers.rms_norm(x, weight, 1e-2), x)


def make_adapted(architecture: str, targets: Any = "all-linear", dropout: float = 0.0) -> Any:
    model = add_lora(make_model(architecture), LoraSettings(4, 8, dropout, targets))
    let_adapters_act(model, 0.1)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model.train()


def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of the fused functions."""
    counts: Counter[str] = Counter()
    for name in ("frozen_linear", "rms_norm"):
        function = getattr(fused_layers, name)

        def counted(*args: Any, name: str = name, function: Any = function, **named: Any) -> Tensor:
            counts[name] += 1
            out: Tensor = function(*args, **named)
            return out

        monkeypatch.setattr(fused_layers, name, counted)
    return counts


def log_probs_and_gradients(model: Any) -> list[Tensor]:
    batch = collate_padded([transcript for group in make_groups() for transcript in group], 0)
    model.zero_grad()
    torch.manual_seed(5)  # of dropout
    tokens = utterance_log_probs(model, batch, end_of_turn_id=2).tokens
    (tokens * torch.arange(1, tokens.numel() + 1).view_as(tokens)).sum().backward()
    return [tokens.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize(
    ("targets", "dropout"), [("all-linear", 0.0), ("all-linear", 0.3), (["q_proj", "v_proj"], 0.0)]
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_of_models_match(
    architecture: str, targets: Any, dropout: float, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_adapted(architecture, targets, dropout)
    if checkpointing:
        again = functools.partial(_as_in_forward_pass, causal_lm(model))
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": again})
        model.enable_input_require_grads()
    counts = calls(monkeypatch)
    accelerate(model, "off")
    default = log_probs_and_gradients(model)
    assert not counts
    accelerate(model, ["fused_layers"])
    fused = log_probs_and_gradients(model)
    passes = 2 if checkpointing else 1
    assert counts["frozen_linear"] == passes * 2 * (7 if targets == "all-linear" else 2)
    assert counts["rms_norm"] == (passes * 4 + 1 if NORMS[architecture] else 0)
    for actual, expected in zip(fused, default, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.skipif(not multiplies_bf16(), reason="this CPU does not multiply bf16")
@pytest.mark.parametrize("architecture", SHAPES)
def test_errors_in_bf16_are_no_larger(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_adapted(architecture, ["q_proj", "v_proj", "up_proj"])
    true = log_probs_and_gradients(model)
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    leave_casting_to_autocast(model)
    off, counts = [], calls(monkeypatch)
    for choice in ("off", "auto"):
        accelerate(model, choice)
        assert not counts
        with torch.autocast("cpu", torch.bfloat16):
            rounded = log_probs_and_gradients(model)
        off.append([float((a - b).norm() / b.norm()) for a, b in zip(rounded, true, strict=True)])
    assert counts["frozen_linear"] == 2 * 7  # layers without an adapter, too
    default, ours = (torch.tensor(errors) for errors in off)
    assert ours.mean() < 1.2 * default.mean() and (ours < 2 * default).float().mean() > 0.9, (ours, default)


def test_casting_is_left_to_autocast_only_where_there_is_autocast() -> None:
    model, ids = make_adapted("llama").bfloat16(), torch.arange(5)[None]
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.float()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        leave_casting_to_autocast(model)
        assert torch.equal(model(input_ids=ids).logits, expected)
        seen: list[torch.dtype] = []
        lora_a = next(layer.lora_A["default"] for layer in model.modules() if hasattr(layer, "lora_A"))
        lora_a.register_forward_pre_hook(lambda layer, args: seen.append(args[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids)
        model(input_ids=ids)
    assert seen == [torch.bfloat16, torch.float32]


def test_where_they_are_not_supported_layers_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_adapted("llama")
    accelerate(model, ["fused_layers"])
    counts, ids = calls(monkeypatch), torch.arange(5)[None]
    with torch.no_grad():
        model(input_ids=ids)
    with model.disable_adapter():
        model(input_ids=ids)
    with MergedWeights(model).active():
        model(input_ids=ids)
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    model(input_ids=ids)
    assert not counts["frozen_linear"]
    model.set_adapter("other")
    model(input_ids=ids)
    assert counts["frozen_linear"] == 14
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    counts.clear()
    model(input_ids=ids)
    assert not counts


def test_layers_of_other_kinds_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    gpt2 = make_model("gpt2", n_embd=32, n_layer=2, n_head=4)
    with caplog.at_level(logging.WARNING, "lit_rft"):
        accelerate(add_lora(gpt2, LoraSettings(4, 8, 0.0, ["c_attn", "c_proj"])))
        dora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], use_dora=True, task_type="CAUSAL_LM")
        accelerate(get_peft_model(make_model("llama"), dora))
        accelerate(make_adapted("llama"))
        accelerate(make_adapted("llama", ["q_proj", "lm_head"]))
    messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    what = "has adapted layers that cannot be fused, which is slower on a CPU"
    named = [
        f"GPT2LMHeadModel {what}: Linear of Conv1D",
        f"LlamaForCausalLM {what}: DoraLinearVariant Linear of Linear",
    ]
    assert messages == (named if multiplies_bf16() else [])


def test_a_model_that_trains_has_nothing_to_fuse() -> None:
    model = make_model("llama").train()
    expected = log_probs_and_gradients(model)
    accelerate(model)
    for actual, before in zip(log_probs_and_gradients(model), expected, strict=True):
        assert torch.equal(actual, before)


@pytest.mark.skipif(not multiplies_bf16(), reason="this CPU does not multiply bf16")
def test_packed_weights_follow_their_weights_and_a_copy_has_its_own() -> None:
    model = make_adapted("llama").bfloat16()
    accelerate(model)
    before = log_probs_and_gradients(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in other.modules():
            if type(layer) is nn.Linear:
                layer.weight.mul_(0.5)
    changed = log_probs_and_gradients(other)
    assert not torch.equal(changed[0], before[0])
    for actual, expected in zip(log_probs_and_gradients(model), before, strict=True):
        assert torch.equal(actual, expected)
    fresh = make_adapted("llama").bfloat16()
    fresh.load_state_dict(other.state_dict())
    for actual, expected in zip(changed, log_probs_and_gradients(fresh), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
