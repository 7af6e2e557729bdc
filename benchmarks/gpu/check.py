"""Agreement of the library's results on a GPU and on a CPU.

    python benchmarks/gpu/check.py --output runs/gpu

A tiny model with random weights: one step of supervised fine-tuning, one of GRPO, one rollout, on both devices in
float32, compared; the same in bf16 on the device alone.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

# first: it adds the shared modules to the path
from kit import DEVICE, begin, environment, has_flash_attention

import lightning as L  # isort: skip
import torch
from made_up import END, make_model, make_problems
from torch.nn.attention import SDPBackend
from train import SFT, GivenCompletions, make_transcripts


class Gradients(L.Callback):
    """Keeps the gradients of the last optimiser step.

    Adam's first step has little but their signs. Training starts from the same weights on all devices: new adapters are
    drawn on the device itself, and half of them are zero, so that the other half would get no gradient.
    """

    def __init__(self) -> None:
        self.values: dict[str, torch.Tensor] = {}

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        randoms = torch.Generator().manual_seed(0)
        for _, parameter in sorted(module.named_parameters()):
            if parameter.requires_grad:
                parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=randoms))

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        named = [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
        self.values = {name: gradient.detach().float().cpu() for name, gradient in named}


def fit(stage: Any, loader: Any, accelerator: str, precision: str) -> dict[str, torch.Tensor]:
    """Run one optimiser step and return its gradients."""
    gradients = Gradients()
    trainer = L.Trainer(
        max_steps=1, accelerator=accelerator, devices=1, precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, callbacks=[gradients],
    )  # fmt: skip
    trainer.fit(stage, loader)
    return gradients.values


def one_step(kind: str, model: Path, accelerator: str, precision: str) -> dict[str, torch.Tensor]:
    from lit_rft.agents import FlatAgent
    from lit_rft.datamodules import StepLoader
    from lit_rft.models import LoraSettings
    from lit_rft.stages import BatchingSettings, HierarchicalSFT, OptimizerSettings, PolicySettings

    L.seed_everything(0, verbose=False)
    policy = PolicySettings(str(model), LoraSettings(4, 8, 0.0, "all-linear"))
    optimizer = OptimizerSettings(1e-3)
    if kind == SFT:
        loader = StepLoader([[t] for t in make_transcripts(4, 40, 512)], batch_size=4)
        sft = HierarchicalSFT(policy, optimizer, agent=FlatAgent(), batching=BatchingSettings(80, packing=True))
        return fit(sft, loader, accelerator, precision)
    stage = GivenCompletions(policy, optimizer, prompts=2, completion=12, vocabulary=512)
    return fit(stage, stage.loader(model, 8), accelerator, precision)


def compare_steps(kind: str, model: Path) -> dict[str, float]:
    """Return the differences of gradients from those on the CPU in float32, relative to their norm."""
    accelerator = "gpu" if DEVICE.type == "cuda" else "cpu"
    expected = one_step(kind, model, "cpu", "32-true")

    def difference(precision: str) -> float:
        actual = one_step(kind, model, accelerator, precision)
        error = sum(float((actual[name] - expected[name]).square().sum()) for name in expected)
        return (error / sum(float(gradient.square().sum()) for gradient in expected.values())) ** 0.5

    return {
        "float32_relative_difference": difference("32-true"), "bf16_relative_difference": difference("bf16-mixed"),
        "fraction_with_gradient": sum(bool(gradient.any()) for gradient in expected.values()) / len(expected),
    }  # fmt: skip


def compare_rollouts(model: Path) -> dict[str, float]:
    """Compare completion tokens and log-probabilities on both devices: random numbers are drawn on the CPU."""
    from lit_rft.generation import SamplingSettings, sample_groups
    from lit_rft.models import load_backbone

    prompts = [(problem.id, list(range(3, 20 + n))) for n, problem in enumerate(make_problems(3, 10))]
    groups_on = {}
    for device in (torch.device("cpu"), DEVICE):
        net: Any = load_backbone(str(model)).eval().to(device)
        groups_on[str(device)] = sample_groups(
            net, prompts, [3, 2, 4], SamplingSettings(16, 1.0), END, seed=0, max_concurrent=6
        )
    cpu, there = (
        [completion for group in groups_on[str(d)] for completion in group] for d in (torch.device("cpu"), DEVICE)
    )
    same = sum(a.ids == b.ids for a, b in zip(cpu, there, strict=True)) / len(cpu)
    pairs = [(a, b) for a, b in zip(cpu, there, strict=True) if a.ids == b.ids]
    gaps = (abs(x - y) for a, b in pairs for x, y in zip(a.log_probs, b.log_probs, strict=True))
    gap = max(gaps, default=math.nan)
    return {"same_completions": same, "log_prob_difference": gap}


def attention(model: Path) -> dict[str, Any]:
    """Return the model's default attention, and PyTorch's kernels for 12 heads that share 2 of keys."""
    from lit_rft.models import load_backbone

    net: Any = load_backbone(str(model))
    shape = (64, 128)
    query, key = (torch.zeros(1, heads, *shape, device=DEVICE, dtype=torch.bfloat16) for heads in (12, 2))
    mask = torch.zeros(1, 1, 64, 64, device=DEVICE, dtype=torch.bfloat16)

    def kernel(*arguments: Any, **more: Any) -> str:
        return SDPBackend(torch._fused_sdp_choice(*arguments, **more)).name

    return {
        "implementation": net.config._attn_implementation, "flash_attn_installed": has_flash_attention(),
        "causal": kernel(query, key, key, None, 0.0, True, enable_gqa=True),
        "masked": kernel(query, query, query, mask, 0.0, False),
        "masked, grouped": kernel(query, key, key, mask, 0.0, False, enable_gqa=True),
    }  # fmt: skip


def main() -> None:
    kit, _ = begin("check", __doc__)
    kit.figures |= environment()
    kit.write()
    print(kit.figures, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model("tiny", Path(folder))
        kit.measure("attention", lambda: attention(model))
        for kind in (SFT, "grpo"):
            kit.measure(f"{kind} step", lambda kind=kind: compare_steps(kind, model))
        kit.measure("rollout", lambda: compare_rollouts(model))
    if DEVICE.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        kit.measure("memory", lambda: {"free_gb": free / 1e9, "total_gb": total / 1e9})
    kit.finish()


if __name__ == "__main__":
    main()
