"""Private operators of torch that are missing, or take other arguments, lose a fast path and no run."""

import logging
from types import SimpleNamespace

import pytest
import torch
from fast_paths import LAYOUTS, log_probs_and_gradients, logits, make_adapted
from torch import Tensor, nn

from lit_rft.models import FAST_PATHS, accelerate
from lit_rft.models.accel.operators import multiplies_bf16

pytestmark = pytest.mark.skipif(not multiplies_bf16(), reason="this CPU does not multiply bf16")


def without(monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    """Remove a private operator from torch."""
    if not operator.startswith("ops."):
        monkeypatch.delattr(torch, operator)
        return
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    kept = {name: getattr(torch.ops.mkldnn, name) for name in names if not operator.endswith(name)}
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**kept))


@pytest.mark.parametrize(
    ("operator", "lost"),
    [
        ("_softmax_backward_data", ["blockwise_attention"]),
        ("ops.mkldnn._reorder_linear_weight", ["packed_weights", "fused_decoding"]),
        ("ops.mkldnn._linear_pointwise", ["packed_weights", "fused_decoding"]),
        ("ops.mkldnn._is_mkldnn_bf16_supported", ["blockwise_attention", "packed_weights", "fused_decoding"]),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_operator_loses_a_path_and_no_run(
    operator: str, lost: list[str], layout: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_adapted().bfloat16()
    accelerate(model, "off")
    expected = [logits(model), *log_probs_and_gradients(model, LAYOUTS[layout])]
    without(monkeypatch, operator)
    with caplog.at_level(logging.INFO, "lit_rft"):
        accelerate(model)
    reason = f"torch {torch.__version__} has no torch.{operator}"
    on = [name for name in FAST_PATHS if name not in (*lost, "cuda_graphs")]  # the model is on the CPU
    expected_line = f"LlamaForCausalLM uses the fast paths {', '.join(on)}; lost: "
    assert caplog.records[-1].message == expected_line + ", ".join(f"{name} ({reason})" for name in lost)
    actual = [logits(model), *log_probs_and_gradients(model, LAYOUTS[layout])]
    for ours, default in zip(actual, expected, strict=True):
        assert nn.functional.cosine_similarity(ours.float().flatten(), default.float().flatten(), dim=0) > 0.97


def test_an_operator_with_other_arguments_loses_its_path(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def other(weight: Tensor) -> Tensor:
        return weight

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", other)
    model = make_adapted().bfloat16()
    with caplog.at_level(logging.INFO, "lit_rft"):
        accelerate(model)
    assert f"lost: packed_weights (torch {torch.__version__} refuses: " in caplog.records[-1].message
    log_probs_and_gradients(model, LAYOUTS["padded"])
    logits(model)
