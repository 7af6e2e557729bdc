"""Models whose log-probabilities would be wrong are refused when they are loaded."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from lit_rft.generation import ConversationGenerator, SamplingSettings
from lit_rft.models.backbone import final_hidden_states, output_logits
from lit_rft.models.support import check_support, fixed_context, position_limit
from lit_rft.testing.tiny import make_model, make_tokenizer, with_adapters
from lit_rft.testing.tiny_stage import make_stage

SCALED = {
    "cohere": {"logit_scale": 0.5},
    "falcon_h1": {"lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "granite": {"logits_scaling": 3.0},
    "hyperclovax": {"logits_scaling": 3.0},
    "gemma2": {"final_logit_softcapping": 0.5, "sliding_window": 64},
    "recurrent_gemma": {"logits_soft_cap": 0.5, "lru_width": 32, "attention_window_size": 64, "num_hidden_layers": 3},
}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gptj": {"rotary_dim": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "ctrl": {"dff": 64},
}


@pytest.mark.parametrize("architecture", SCALED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_scaled_and_capped_as_by_the_model(architecture: str, dtype: torch.dtype) -> None:
    model = make_model(architecture, **SCALED[architecture]).to(dtype)
    check_support(model)
    ids = torch.arange(5, 15)[None]
    expected = model(input_ids=ids, use_cache=False).logits.float()
    actual = output_logits(model, final_hidden_states(model, ids, torch.arange(10)[None]))
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(actual, expected, **tolerance)


def small(architecture: str) -> Any:
    config = AutoConfig.for_model(
        architecture, vocab_size=len(make_tokenizer()), hidden_size=32, d_model=32, intermediate_size=64, d_inner=64,
        num_hidden_layers=2, n_layer=2, num_attention_heads=4, n_head=4,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("bert", "BertLMHeadModel is not supported: its logits are not those of its output layer"),
        ("xlnet", "XLNetLMHeadModel is not supported: it is not causal"),
    ],
)
def test_other_models_are_refused_when_they_are_loaded(architecture: str, message: str, tmp_path: Path) -> None:
    small(architecture).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_stage(tmp_path, lora=None).configure_model()


def test_an_error_of_the_architecture_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    monkeypatch.setattr(model, "get_decoder", lambda: model)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is not supported: AttributeError: .*last_hidden_state"):
        check_support(model)


def test_a_model_with_attention_for_a_gpu_is_checked_with_another() -> None:
    def attend(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("needs a GPU")

    AttentionInterface.register("for_a_gpu", attend)
    model = make_model().train()
    model.set_attn_implementation("for_a_gpu")
    check_support(model)
    assert model.config._attn_implementation == "for_a_gpu" and model.training


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("gpt2", 48), ("opt", 48), ("gptj", 48), ("ctrl", 48), ("llama", None), ("bloom", None), ("gemma", None)],
)
@pytest.mark.parametrize("adapted", [False, True])
def test_the_limit_of_positions_is_where_a_model_fails(architecture: str, expected: int | None, adapted: bool) -> None:
    model = make_model(architecture, max_position_embeddings=48, **SIZES.get(architecture, {}))
    model = with_adapters(model) if adapted else model
    assert position_limit(model) == expected
    ids = torch.tensor([[5]])
    final_hidden_states(model, ids, ids * 0 + 47)
    with pytest.raises((IndexError, RuntimeError)) if expected else contextlib.nullcontext():
        final_hidden_states(model, ids, ids * 0 + 48)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_padding_takes_no_positions_behind_the_last(architecture: str) -> None:
    """A long conversation, next to one that reads more new tokens."""
    model = make_model(architecture, max_position_embeddings=48, **SIZES[architecture])

    def sample(turns: list[dict[str, list[int]]]) -> list[int]:
        generator = ConversationGenerator(model, 2, SamplingSettings(3), num_slots=2)
        slots = {name: generator.open(name) for turn in turns[-1:] for name in turn}
        for turn in turns:
            answers = generator.sample({slots[name]: ids for name, ids in turn.items()})
        return answers[slots["long"]].ids

    first, second = {"long": list(range(3, 39))}, {"long": list(range(50, 57))}
    expected = sample([first, second])
    assert sample([first, second | {"short": list(range(60, 74))}]) == expected


def test_lengths_where_positions_depend_on_other_sequences() -> None:
    """A sequence next to one that is longer than the limit has other states."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}
    rope = {"rope_theta": 1e4, "factor": 4.0}
    cases = {
        "longrope": ("phi3", rope | factors, {"original_max_position_embeddings": 16, "max_position_embeddings": 64}),
        "dynamic": ("llama", rope, {"max_position_embeddings": 16}),
        "default": ("llama", {"rope_theta": 1e4}, {"max_position_embeddings": 16}),
    }
    for kind, (architecture, parameters, options) in cases.items():
        model = make_model(architecture, rope_parameters={"rope_type": kind} | parameters, **options)
        limit = fixed_context(model)
        assert limit == (None if kind == "default" else 16)
        ids = torch.randint(3, 272, (2, 24), generator=torch.Generator().manual_seed(0))

        def states(ids: torch.Tensor, model: Any = model) -> torch.Tensor:
            return final_hidden_states(model, ids, torch.arange(ids.shape[1]).expand_as(ids))[0, :8]

        torch.testing.assert_close(states(ids[:, :16]), states(ids[:, :8]))
        assert torch.allclose(states(ids), states(ids[:, :8]), atol=1e-4) == (limit is None)


def test_kinds_of_layers_without_rotary_positions_have_no_limit() -> None:
    model = make_model()
    model.config.rope_parameters = {"full_attention": None, "sliding_attention": {"rope_type": "default"}}
    assert fixed_context(model) is None
