"""The switch of the fast paths: off is the default implementation, on gives the same values and gradients."""

import logging
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jsonargparse
import pytest
import torch
from fast_paths import LAYOUTS, log_probs_and_gradients, logits, make_adapted
from torch import Tensor, nn

from lit_rft.generation.decoder import Decoder
from lit_rft.generation.recompute import RecomputeDecoder, make_decoder
from lit_rft.models import FAST_PATHS, accelerate, forward, hidden_states
from lit_rft.models.accel import blockwise_attention, can_share_prompts, fused_layers, is_on, shared_prompts
from lit_rft.models.accel.decoding_attention import decoding_attention
from lit_rft.models.accel.operators import multiplies_bf16
from lit_rft.models.accel.packed_weights import Exchanged, PackedWeights
from lit_rft.stages import BatchingSettings, PolicySettings
from lit_rft.testing.tiny import SHAPES, make_model
from lit_rft.testing.tiny_stage import fit, make_loader, make_stage

# path -> the layout that it is tested in
TRAINING = {
    "packed_sequences": "packed", "shared_prompts": "shared", "blockwise_attention": "padded", "fused_layers": "padded",
    "log_prob_gradients": "padded",
}  # fmt: skip
needs_bf16 = pytest.mark.skipif(not multiplies_bf16(), reason="this CPU does not multiply bf16")


def support_all_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blocks serve float64 on any CPU, within windows."""
    for module in (blockwise_attention, shared_prompts):
        monkeypatch.setattr(module, "is_supported", lambda query, dropout, window, length: (window or length) >= length)


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_paths_give_the_default_values_and_gradients(
    architecture: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    support_all_types(monkeypatch)
    model = make_adapted(architecture)
    accelerate(model, "off")
    expected = log_probs_and_gradients(model, LAYOUTS[layout])
    for choice in ("auto", *([name] for name, place in TRAINING.items() if place == layout)):
        accelerate(model, choice)
        actual = log_probs_and_gradients(model, LAYOUTS[layout])
        for ours, default in zip(actual, expected, strict=True):  # norms and rotations are float32 inside
            assert (ours - default).abs().max() <= 1e-4 * default.abs().max() + 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_off_takes_the_default_implementation_in_training(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each path's function is called if and only if the path is on; the last two are the defaults of two layouts."""
    support_all_types(monkeypatch)
    functions = {
        "blockwise_attention": [(blockwise_attention, "blockwise_attention"), (shared_prompts, "blockwise_attention")],
        "fused_layers": [(fused_layers, "frozen_linear"), (fused_layers, "rms_norm")],
        "shared_prompts": [(forward, "shared_hidden_states")],
    }
    mocks: dict[str, list[Mock]] = {}
    for name, places in functions.items():
        mocks[name] = [Mock(wraps=getattr(module, function)) for module, function in places]
        for (module, function), mock in zip(places, mocks[name], strict=True):
            monkeypatch.setattr(module, function, mock)
    separate = Mock(wraps=forward.separate_hidden_states)
    monkeypatch.setattr(forward, "separate_hidden_states", separate)
    model = make_adapted()
    head_rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: head_rows.append(len(args[0])))

    def calls(choice: Any) -> dict[str, bool]:
        accelerate(model, choice)
        hidden_states(model, LAYOUTS[layout])  # architectures are compared here, on first use
        for mock in (separate, *(mock for group in mocks.values() for mock in group)):
            mock.reset_mock()
        head_rows.clear()
        log_probs_and_gradients(model, LAYOUTS[layout])
        called = {name: any(mock.called for mock in group) for name, group in mocks.items()}
        actions = int(LAYOUTS[layout].utterance_mask.sum())
        assert sum(head_rows) in (actions, 2 * actions)
        return called | {"log_prob_gradients": sum(head_rows) == actions, "separate": separate.called}

    off = dict.fromkeys(["blockwise_attention", "fused_layers", "shared_prompts", "log_prob_gradients"], False)
    assert calls("off") == off | {"separate": layout != "padded"}
    on = calls("auto")
    assert on == dict.fromkeys(off, True) | {"shared_prompts": layout == "shared", "separate": False}
    rest = [name for name in FAST_PATHS if name != "blockwise_attention"]
    assert calls(rest) == on | {"blockwise_attention": False}


@pytest.mark.parametrize("architecture", SHAPES)
def test_decoding_gives_the_default_logits(architecture: str) -> None:
    model = make_adapted(architecture).eval()
    accelerate(model, "off")
    assert type(make_decoder(model, 3, 2)) is RecomputeDecoder
    expected = logits(model)
    for choice in ("auto", ["kv_cache"], ["kv_cache", "decoding_attention"]):
        accelerate(model, choice)
        assert type(make_decoder(model, 3, 2)) is Decoder
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_decoding_attention_off_is_sdpa() -> None:
    model = make_model()
    used = []
    for choice in ("off", "auto"):
        accelerate(model, choice)
        with decoding_attention(model):
            used.append(model.config._attn_implementation)
    assert used == ["sdpa", "lit_rft_decoding"]


@needs_bf16
def test_weights_are_packed_only_if_that_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []
    multiply = PackedWeights.multiply
    monkeypatch.setattr(PackedWeights, "multiply", lambda self, *args: products.append(1) or multiply(self, *args))
    model = make_adapted().bfloat16()
    results = {}
    for choice in (["fused_layers", "kv_cache"], ["fused_layers", "kv_cache", "packed_weights"]):
        accelerate(model, choice)
        products.clear()
        decoded = logits(model)
        sampled = len(products)
        outputs = [decoded, *log_probs_and_gradients(model, LAYOUTS["padded"])]
        results[len(choice)] = (sampled > 0, len(products) > sampled, outputs)
    assert results[2][:2] == (False, False) and results[3][:2] == (True, True)
    for packed, default in zip(results[3][2], results[2][2], strict=True):
        assert (packed - default).norm() <= 0.02 * default.norm()


def test_every_path_may_be_named_and_all_are_the_default() -> None:
    model = make_model()
    assert all(is_on(model, name) for name in FAST_PATHS)
    for choice, expected in (
        ("auto", FAST_PATHS), (True, FAST_PATHS), ("off", ()), (False, ()), ([], ()),
        (["kv_cache", "fused_layers"], ("fused_layers", "kv_cache")),
    ):  # fmt: skip
        accelerate(model, choice)
        assert tuple(name for name in FAST_PATHS if is_on(model, name)) == expected
    assert not can_share_prompts(model)


@pytest.mark.parametrize("choice", [["fused_layers", "flash"], "flash", "kv_cache", "on"])
def test_an_unknown_name_is_refused_with_the_names(choice: Any) -> None:
    with pytest.raises(ValueError, match=f"a list of fast paths .*{', '.join(FAST_PATHS)}") as refused:
        PolicySettings(accelerate=choice)
    assert str(refused.value).endswith(choice if isinstance(choice, str) else "got flash")


@pytest.mark.parametrize(
    ("text", "expected"), [("off", False), ("'off'", False), ("auto", True), ("[kv_cache]", ["kv_cache"])]
)
def test_the_setting_is_read_from_yaml(text: str, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"policy:\n  accelerate: {text}\n")
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(PolicySettings, "policy")
    parser.add_argument("--config", action="config")
    settings = parser.instantiate(parser.parse_args(["--config", str(tmp_path / "config.yaml")])).policy
    model = make_model()
    accelerate(model, settings.accelerate)
    names = set(FAST_PATHS) if expected is True else set() if expected is False else set(expected)
    assert {name for name in FAST_PATHS if is_on(model, name)} == names


def test_a_stage_takes_the_paths_of_its_setting_and_logs_them_once(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = []
    for choice in ("off", ["fused_layers", "packed_sequences"]):
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "lit_rft"):
            stage = make_stage(
                tiny_model_folder, batching=BatchingSettings(2000, packing=True), policy={"accelerate": choice}
            )
            fit(stage, make_loader(tiny_model_folder), 1, default_root_dir=tmp_path)
        assert stage.policy is not None
        on = [name for name in FAST_PATHS if is_on(stage.policy, name)]
        assert sorted(on) == sorted(choice if isinstance(choice, list) else [])
        lines = [r.message for r in caplog.records if "uses the fast paths" in r.message]
        assert lines == [f"LlamaForCausalLM uses the fast paths {', '.join(on) or 'none'}"]
        reasons = [r.message for r in caplog.records if r.levelno == logging.DEBUG and "is off: " in r.message]
        assert len(reasons) == len(FAST_PATHS) - len(on)
        fused = any(isinstance(vars(layer).get("forward"), Exchanged) for layer in stage.policy.modules())
        assert fused == ("fused_layers" in on)
        weights.append(torch.cat([p.detach().flatten() for p in stage.policy.parameters() if p.requires_grad]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)


def test_the_log_names_the_reasons(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "lit_rft"):
        accelerate(make_model(), device="cuda", dtype=torch.float32)
        accelerate(make_adapted(), sharded=True, dtype=torch.float32)
    reasons = [record.message for record in caplog.records if record.levelno == logging.DEBUG]
    for line in (
        "fast path fused_layers is off: serves CPUs only, not cuda",
        "fast path log_prob_gradients is off: the output layer trains",
        "fast path fused_layers is off: weights are sharded",
        "fast path blockwise_attention is off: serves bf16 only, not float32",
        "fast path cuda_graphs is off: the device is cpu, not cuda",
        "fast path shared_openings is off: the device is cuda, not cpu",
        "fast path lookup_drafts is off: the device is cuda, not cpu",
    ):
        assert line in reasons
    lines = [record.message for record in caplog.records if record.levelno == logging.INFO][-1]
    on = "shared_prompts, log_prob_gradients, decoding_attention, kv_cache, shared_openings, lookup_drafts"
    assert lines.endswith(on)


def test_off_undoes_what_was_fused_and_leaves_others_alone() -> None:
    model = make_adapted()
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    calls: list[int] = []

    def theirs(x: Tensor) -> Tensor:
        calls.append(1)
        return nn.functional.linear(x, layers[0].weight, layers[0].bias)

    layers[0].forward = theirs  # type: ignore[method-assign]
    accelerate(model, "off")
    expected = log_probs_and_gradients(model, LAYOUTS["padded"])
    for choice in ("auto", "auto", "off"):
        accelerate(model, choice)
        fused = [layer for layer in model.modules() if isinstance(vars(layer).get("forward"), Exchanged)]
        assert bool(fused) == (choice == "auto")
    assert layers[0].forward is theirs
    assert not any("forward" in vars(layer) for layer in model.modules() if layer is not layers[0])
    calls.clear()
    for again, default in zip(log_probs_and_gradients(model, LAYOUTS["padded"]), expected, strict=True):
        assert torch.equal(again, default)
    assert calls
