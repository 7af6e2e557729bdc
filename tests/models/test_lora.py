"""Adapters are where the settings say, on every architecture, or the settings are refused."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_rft.models import LoraSettings, MergedWeights, accelerate, load_backbone, use_adapter, utterance_log_probs
from lit_rft.models.backbone import leave_casting_to_autocast
from lit_rft.models.features import backbone_fingerprint
from lit_rft.models.lora import add_lora
from lit_rft.testing.tiny import let_adapters_act, make_groups, make_model
from lit_rft.transcripts import collate_padded

QKVO = "q_proj k_proj v_proj o_proj"
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
EXPERTS = {"n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
# architecture -> the projections of an attention layer, and what its configuration calls sizes
ATTENTION: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(["llama", "qwen2", "qwen3", "gemma", "gemma2", "mistral", "mixtral", "olmo2"], (QKVO, {})),
    **dict.fromkeys(["granite", "starcoder2", "stablelm", "smollm3", "gpt_oss", "qwen3_moe", "cohere"], (QKVO, {})),
    "phi": ("q_proj k_proj v_proj dense", {}),
    "phi3": ("qkv_proj o_proj", {}),
    "glm4": (QKVO, {}),
    "gpt2": ("c_attn c_proj", GPT2),
    "gpt_bigcode": ("c_attn c_proj", GPT2),
    "gpt_neo": (
        "q_proj k_proj v_proj out_proj",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    ),
    "gpt_neox": ("query_key_value dense", {}),
    "gptj": ("q_proj k_proj v_proj out_proj", {**GPT2, "rotary_dim": 4}),
    "codegen": ("qkv_proj out_proj", {**GPT2, "rotary_dim": 4}),
    "bloom": ("query_key_value dense", {"n_layer": 2, "n_head": 4}),
    "falcon": ("query_key_value dense", {"head_dim": None}),
    "persimmon": ("query_key_value dense", {}),
    "mpt": ("Wqkv out_proj", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    "opt": ("q_proj k_proj v_proj out_proj", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "deepseek_v3": (
        "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj",
        {**LATENT, **EXPERTS, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    ),
    "qwen3_next": ("in_proj_qkvz in_proj_ba out_proj", {"num_experts": 2, "shared_expert_intermediate_size": 8}),
}


def make_empty(architecture: str, **overrides: Any) -> Any:
    """A model of two layers without memory for its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    settings = {name: value for name, value in {**sizes, **overrides}.items() if value is not None}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings))


def adapted_layers(model: Any) -> list[str]:
    return [name for name, layer in model.named_modules() if hasattr(layer, "lora_A") and hasattr(layer, "base_layer")]


@pytest.mark.parametrize("architecture", ATTENTION)
def test_by_default_all_attention_projections_are_adapted(architecture: str) -> None:
    leaves, overrides = ATTENTION[architecture]
    names = adapted_layers(add_lora(make_empty(architecture, **overrides), LoraSettings()))
    assert {name.rpartition(".")[2] for name in names} == set(leaves.split())
    assert len(names) == 2 * len(leaves.split())  # in each layer, and none of the MLP's
    assert all("mlp" not in name for name in names)


def test_a_model_without_attention_says_what_it_has() -> None:
    model = make_empty("mamba")
    with pytest.raises(ValueError, match=r"MambaForCausalLM has no attention layers; set all-linear.*in_proj"):
        add_lora(model, LoraSettings())
    assert len(adapted_layers(add_lora(model, LoraSettings(target_modules=["in_proj", "x_proj"])))) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj", "v_prj"]}, r"target_modules: 'v_prj' matches no layer.*there are: .*gate_proj"),
        ({"target_modules": ["q_proj", "v_prj"]}, "did you mean 'v_proj'"),
        ({"target_modules": ["qproj"]}, "there are: .*did you mean q_proj"),
        ({"target_modules": "q_proj,v_proj"}, r"write a list: \[q_proj, v_proj\]"),
        ({"target_modules": "q_proj"}, r"write a list: \[q_proj\]"),
        ({"target_modules": "all_linear"}, "a text is attention, all-linear, or a regular expression"),
        ({"exclude_modules": ["q_prj"]}, "exclude_modules: 'q_prj' matches no layer.*did you mean 'q_proj'"),
        ({"rank_pattern": {"q_prj": 4}}, "rank_pattern: 'q_prj' matches no layer.*did you mean 'q_proj'"),
        ({"rank_pattern": {"up_proj": 4}}, "rank_pattern: 'up_proj' matches no layer"),  # it is not adapted
        ({"alpha_pattern": {"x": 4}}, "alpha_pattern: 'x' matches no layer"),
        ({"modules_to_save": ["head"]}, "modules_to_save: 'head' matches no layer.*did you mean 'lm_head'"),
        ({"layers_to_transform": [0, 2]}, r"layers_to_transform must be in 0\.\.1, the model's layers: got 2"),
        ({"layers_to_transform": [1], "target_modules": r".*\.q_proj"}, "needs target_modules as a list"),
    ],
)
def test_what_matches_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_lora(make_empty("llama"), LoraSettings(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank must be >= 1"),
        ({"alpha": 0}, "lora.alpha must be > 0"),
        ({"dropout": 1.0}, r"lora.dropout must be in \[0, 1\)"),
        ({"rank_pattern": {"q_proj": 0}}, "lora.rank_pattern.q_proj must be >= 1"),
        ({"alpha_pattern": {"q_proj": -1}}, "lora.alpha_pattern.q_proj must be > 0"),
        ({"target_modules": []}, "name at least one layer"),
        ({"modules_to_save": "lm_head"}, "must be a list of names"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraSettings(**settings)


def test_names_of_experts_that_are_one_parameter_are_known() -> None:
    model: Any = add_lora(make_empty("mixtral"), LoraSettings(dropout=0.0, target_modules=["q_proj", "w1", "w2", "w3"]))
    assert model.base_model.targeted_parameter_names
    with pytest.raises(ValueError, match="'w4' matches no layer"):
        add_lora(make_empty("mixtral"), LoraSettings(dropout=0.0, target_modules=["q_proj", "w1", "w2", "w3", "w4"]))


def test_every_key_has_its_effect(caplog: pytest.LogCaptureFixture) -> None:
    def make(**settings: Any) -> Any:
        return add_lora(make_model(), LoraSettings(**{"rank": 4, "alpha": 8, "dropout": 0.0, **settings}))

    def layer(model: Any, name: str = "layers.0.self_attn.q_proj") -> Any:
        return next(module for key, module in model.named_modules() if key.endswith(name))

    assert layer(make()).scaling == {"default": 2.0} and layer(make(use_rslora=True)).scaling == {"default": 4.0}
    assert layer(make(rank_pattern={"q_proj": 2})).r == {"default": 2}
    assert layer(make(alpha_pattern={"layers.0.self_attn.q_proj": 4})).scaling == {"default": 1.0}
    assert layer(make(use_dora=True)).lora_magnitude_vector and not layer(make()).lora_magnitude_vector
    plain, gaussian, orthogonal = (
        layer(make(init_lora_weights=name)) for name in ("default", "gaussian", "orthogonal")
    )
    assert gaussian.lora_A["default"].weight.abs().mean() > plain.lora_A["default"].weight.abs().mean() * 1.2
    assert not plain.lora_B["default"].weight.any() and orthogonal.lora_B["default"].weight.any()
    assert orthogonal.get_delta_weight("default").abs().max() < 1e-6
    assert len(adapted_layers(make(exclude_modules=["q_proj"]))) == 2 * 3
    assert len(adapted_layers(make(exclude_modules=r".*0\.self_attn.*"))) == 4
    for target in (["q_proj"], "attention", "all-linear"):
        names = adapted_layers(make(layers_to_transform=[1], target_modules=target))
        assert names and all(".layers.1." in name for name in names)
    with caplog.at_level(logging.INFO, "lit_rft"):
        make(modules_to_save=["lm_head"], target_modules=["q_proj", "v_proj"])
    assert "LoRA adapts 4 layers (q_proj, v_proj) and trains lm_head in full" in caplog.text
    number = 2 * (4 * (32 + 32) + 4 * (32 + 16)) + 32 * 272
    assert f"{number:,} of" in caplog.text


KINDS: list[dict[str, Any]] = [
    {"use_dora": True},
    {"use_rslora": True},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens", "norm"]},
    {"use_dora": True, "use_rslora": True, "modules_to_save": ["lm_head"], "rank_pattern": {"q_proj": 2}},
]
IDS = torch.arange(5, 40)[None]


def make_adapted(settings: dict[str, Any], *more: str) -> Any:
    """A model whose adapters and fully trained layers do change its outputs."""
    torch.manual_seed(3)
    model: Any = add_lora(make_model(), LoraSettings(**{"rank": 4, "alpha": 8, "dropout": 0.0, **settings}))
    for name in more:
        model.add_adapter(name, model.peft_config["default"])
    let_adapters_act(model, 0.1)
    for name, parameter in model.named_parameters():
        if "magnitude" in name or ".modules_to_save." in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_merged_adapters_equal_computed_ones(settings: dict[str, Any]) -> None:
    model = make_adapted(settings, "low").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    with model.disable_adapter():
        backbone = logits(model)
    torch.testing.assert_close(backbone, logits(make_model()), rtol=1e-5, atol=1e-5)
    outputs = {}
    for name in ("default", "low"):
        with use_adapter(model, name):
            outputs[name] = logits(model)
        with MergedWeights(model, name).active():
            torch.testing.assert_close(logits(model), outputs[name], rtol=1e-4, atol=1e-4)
        assert torch.equal(logits(model), outputs["default"])
    assert not torch.allclose(outputs["low"], outputs["default"], atol=1e-2)
    assert not torch.allclose(outputs["default"], backbone, atol=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert trains == {name: p.requires_grad for name, p in model.named_parameters()}


def log_probs_and_gradients(model: Any) -> dict[str, torch.Tensor]:
    batch = collate_padded([member for group in make_groups() for member in group], 0)
    model.zero_grad()
    tokens = utterance_log_probs(model, batch, end_of_turn_id=2).tokens
    (tokens * torch.arange(1, tokens.numel() + 1).view_as(tokens)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"": tokens.detach(), **gradients}


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_fused_layers_equal_unfused_ones(settings: dict[str, Any]) -> None:
    model = make_adapted(settings).train()
    accelerate(model, "off")
    expected = log_probs_and_gradients(model)
    assert set(expected) - {""} == {name for name, p in model.named_parameters() if p.requires_grad}
    accelerate(model, ["fused_layers"])
    actual = log_probs_and_gradients(model)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()), msg=name)


def test_what_trains_is_float32_under_autocast() -> None:
    model = make_adapted(KINDS[-1]).train()
    expected = log_probs_and_gradients(model)
    for parameter in model.parameters():  # as a backbone that is loaded in bf16
        parameter.data = parameter.data.bfloat16()
    leave_casting_to_autocast(model)
    assert all((p.dtype == torch.float32) == p.requires_grad for p in model.parameters())
    accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        actual = log_probs_and_gradients(model)
        model.eval()
        before = logits(model)
        with MergedWeights(model).active():
            merged = logits(model)
    assert actual.keys() == expected.keys()
    similar = [torch.cosine_similarity(actual[k].flatten(), v.flatten(), dim=0) for k, v in expected.items()]
    assert min(map(float, similar)) > 0.97
    assert (merged - before).norm() < 0.05 * before.norm()


def test_layers_trained_in_full_are_no_part_of_the_backbone() -> None:
    model = make_adapted({"modules_to_save": ["lm_head"]})
    before = backbone_fingerprint(model)
    nn.init.zeros_(model.get_parameter("base_model.model.lm_head.modules_to_save.default.weight"))
    assert backbone_fingerprint(model) == before


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_an_exported_adapter_is_loaded_again(
    settings: dict[str, Any], tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora = LoraSettings(**{"rank": 4, "alpha": 8, "dropout": 0.0, **settings})
    model: Any = load_backbone(str(tiny_model_folder), lora=lora).eval()
    let_adapters_act(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "lit_rft"):
        again = load_backbone(str(tiny_model_folder), adapter=tmp_path).eval()
    assert "LoRA adapts 8 layers" in caplog.text
    assert torch.equal(logits(again), logits(model))
