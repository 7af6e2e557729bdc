"""The reference policy of the divergence is what the stage started from."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from grpo_parts import grpo_parts, letter_sum
from grpo_stage import make_prompts

from lit_rft.callbacks import AdapterExport, AtomicCheckpointIO, RandomState, RunCheckpoint
from lit_rft.datamodules import PromptLoader
from lit_rft.generation import SamplingSettings
from lit_rft.stages import GRPO, HierarchicalSFT, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import ADAPTERS, fit, make_loader, make_stage, speak_out, trained


@pytest.fixture
def sft(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint of supervised fine-tuning, far from the pretrained model."""
    stage = make_stage(tiny_model_folder)
    speak_out(stage)
    trainer = fit(stage, make_loader(tiny_model_folder), 1, plugins=[AtomicCheckpointIO()])
    trainer.save_checkpoint(tmp_path / "sft.ckpt")
    return tmp_path / "sft.ckpt"


def make(model: Path, start: Path | None, *, lora: Any = ADAPTERS, **objective: Any) -> GRPO:
    L.seed_everything(0, verbose=False)
    settings = {"group_size": 3, "entropy_coef": 0.0, "kl_coef": 0.5} | objective
    return GRPO(
        PolicySettings(str(model), lora, start_from=None if start is None else str(start)),
        OptimizerSettings(5e-3), sampling=SamplingSettings(6, 1.0), reward=letter_sum, **grpo_parts(**settings),
    )  # fmt: skip


class KL(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/kl"]))


def run(stage: GRPO, model: Path, steps: int, folder: Path, **options: Any) -> list[float]:
    kl, callbacks = KL(), [RandomState(), RunCheckpoint(every_n_steps=1)]
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[kl, *callbacks, AdapterExport()],
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    trainer.fit(stage, PromptLoader(make_prompts(model, traces=0), batch_size=2), **options)
    return kl.values


def reference(stage: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in stage.named_parameters() if ".reference." in name}


def test_the_first_step_after_another_stage_diverges_from_nothing(
    sft: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    stage = make(tiny_model_folder, sft)
    values = run(stage, tiny_model_folder, 2, tmp_path / "run")
    assert values[0] == 0.0 and values[1] > 0
    # from the pretrained model it would be far away, with and without a start
    fresh = make(tiny_model_folder, None)
    speak_out(fresh)
    assert not reference(fresh) and run(fresh, tiny_model_folder, 1, tmp_path / "fresh")[0] > 0.01


def test_without_a_divergence_there_is_no_reference(sft: Path, tiny_model_folder: Path) -> None:
    stage = make(tiny_model_folder, sft, kl_coef=0.0)
    stage.configure_model()
    assert not reference(stage)


def test_at_ratio_one_the_divergence_has_no_gradient(sft: Path, tiny_model_folder: Path) -> None:
    steps = []
    for coefficient in (1e-30, 10.0):
        stage = make(tiny_model_folder, sft, kl_coef=coefficient)
        fit(stage, PromptLoader(make_prompts(tiny_model_folder, traces=0), batch_size=2), 1)
        steps.append(trained(stage))
    start = make(tiny_model_folder, sft)
    start.configure_model()
    moved = max(float((steps[0][name] - value).abs().max()) for name, value in trained(start).items())
    assert moved > 1e-3
    for name, value in steps[0].items():
        torch.testing.assert_close(steps[1][name], value, rtol=1e-4, atol=1e-6)


def test_the_reference_is_not_trained_nor_exported_and_survives_a_resume(
    sft: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    through = make(tiny_model_folder, sft)
    values = run(through, tiny_model_folder, 4, tmp_path / "through")
    first = make(tiny_model_folder, sft)
    assert run(first, tiny_model_folder, 2, tmp_path / "cut") == values[:2]
    kept = reference(first)
    assert kept and not any(parameter.requires_grad for n, parameter in first.named_parameters() if n in kept)
    assert not (tmp_path / "cut" / "adapter" / "reference").exists()
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    # the start has changed since: the reference in the checkpoint counts
    other = make_stage(tiny_model_folder, seed=5)
    trainer = fit(other, make_loader(tiny_model_folder), 1, plugins=[AtomicCheckpointIO()])
    trainer.save_checkpoint(sft)
    resumed = make(tiny_model_folder, sft)
    assert run(resumed, tiny_model_folder, 4, tmp_path / "cut", ckpt_path=checkpoint) == values[2:]
    loaded = GRPO.load_from_checkpoint(checkpoint)
    for name, value in kept.items():
        assert torch.equal(reference(resumed)[name], value) and torch.equal(reference(loaded)[name], value)
    for name, value in trained(through).items():
        assert torch.equal(trained(resumed)[name], value)


def test_a_next_stage_takes_the_policy_and_not_its_reference(
    sft: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    stage = make(tiny_model_folder, sft)
    run(stage, tiny_model_folder, 1, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    again = make(tiny_model_folder, checkpoint)
    again.configure_model()
    for name, value in reference(again).items():
        assert torch.equal(value, trained(stage)[name.replace(".reference.", ".default.")])
    sft_again = HierarchicalSFT(PolicySettings(str(tiny_model_folder), ADAPTERS, start_from=str(checkpoint)))
    sft_again.configure_model()
    assert not reference(sft_again)


def test_a_divergence_from_the_start_needs_adapters(tiny_model_folder: Path, tmp_path: Path) -> None:
    full = make_stage(tiny_model_folder, lora=None)
    fit(full, make_loader(tiny_model_folder), 1, plugins=[AtomicCheckpointIO()]).save_checkpoint(tmp_path / "full.ckpt")
    with pytest.raises(ValueError, match=r"needs LoRA: set policy.lora, or kl_coef 0"):
        make(tiny_model_folder, tmp_path / "full.ckpt", lora=None).configure_model()
    with pytest.raises(ValueError, match=r"needs LoRA: set policy.lora, or kl_coef 0"):
        make(tiny_model_folder, None, lora=None).configure_model()
