"""Times, speed, memory and MFU of training, read back from TensorBoard's files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from every_stage import STAGES, make
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.callbacks import Throughput, throughput
from lit_rft.callbacks.throughput import flops_per_token
from lit_rft.testing import make_model
from lit_rft.testing.tiny import with_adapters

ALWAYS = {"step_seconds", "update_seconds", "trained_tokens_per_second", "peak_memory_gb", "mfu", "evaluation_seconds"}
PHASES = {
    "sft": {"tokens_per_second"},
    "offline_rl": {"tokens_per_second"},
    "online": {"tokens_per_second", "rollout_seconds", "sampled_tokens_per_second"},
    "grpo": {"tokens_per_second", "rollout_seconds", "reward_seconds", "sampled_tokens_per_second"},
    "episodes": {"tokens_per_second", "rollout_seconds", "sampled_tokens_per_second"},
}


class Kept(L.Callback):
    """Keeps what the figures of the last step are made of."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.trained = pl_module.tokens_trained
        self.sampled = sum(rollout.length for rollout in pl_module.samples if not rollout.off_policy)


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: {point.step: point.value for point in events.Scalars(name)} for name in names}


@pytest.mark.parametrize("kind", STAGES)
def test_every_stage_logs_the_same_names(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, data = make(kind, tiny_model_folder, tmp_path)
    kept = Kept()
    trainer = L.Trainer(
        max_steps=1, max_epochs=-1, accelerator="cpu", default_root_dir=tmp_path, log_every_n_steps=1,
        logger=TensorBoardLogger(str(tmp_path), name="tb", version=""), callbacks=[Throughput(peak_tflops=0.5), kept],
        num_sanity_val_steps=0, limit_val_batches=1, val_check_interval=1, check_val_every_n_epoch=None,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loaders = {"datamodule": data} if isinstance(data, L.LightningDataModule) else {
        "train_dataloaders": data, "val_dataloaders": [None] if kind != "grpo" else data,
    }  # fmt: skip
    if not isinstance(data, L.LightningDataModule) and kind != "grpo":  # a loader of stored episodes: nothing to play
        trainer.limit_val_batches = 0
        loaders.pop("val_dataloaders")
    trainer.fit(stage, **loaders)
    values = scalars(tmp_path)
    steps = {tuple(points) for name, points in values.items() if name.startswith(("train/", "val/", "perf/"))}
    assert steps == {(trainer.global_step,)}  # of training and evaluation
    evaluated = trainer.limit_val_batches != 0
    names = {name.removeprefix("perf/") for name in values if name.startswith("perf/")}
    assert names == (ALWAYS if evaluated else ALWAYS - {"evaluation_seconds"}) | PHASES[kind]

    def last(name: str) -> float:
        return max(values[f"perf/{name}"].items())[1]

    phases = sum(last(name) for name in ("rollout_seconds", "reward_seconds", "update_seconds") if name in names)
    assert 0 < phases <= last("step_seconds")
    assert last("trained_tokens_per_second") == pytest.approx(kept.trained / last("update_seconds"), rel=1e-4)
    flops = flops_per_token(stage.policy)
    assert last("mfu") == pytest.approx(last("trained_tokens_per_second") * flops / 0.5e12, rel=1e-4)
    if "rollout_seconds" in names:
        assert last("sampled_tokens_per_second") == pytest.approx(kept.sampled / last("rollout_seconds"), rel=1e-4)
    if kind in ("grpo", "episodes"):
        assert "train/no_signal_fraction" in values


def test_the_flops_of_a_token() -> None:
    model = make_model()
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1 and "embed_tokens" not in name)
    assert flops_per_token(model) == 6 * matrices > 0
    adapted = with_adapters(model)
    added = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    assert flops_per_token(adapted) == 4 * matrices + 6 * added


def test_a_tied_output_layer_does_not_count() -> None:
    tied, untied = (flops_per_token(make_model(tie_word_embeddings=tie)) for tie in (True, False))
    assert untied - tied == 6 * 272 * 32


def test_mfu_needs_a_known_peak(tmp_path: Path) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    trainer = L.Trainer(max_steps=2, accelerator="cpu", logger=False, callbacks=[Throughput()], limit_val_batches=0,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(BoringModel())
    names = {name for name in trainer.callback_metrics if name.startswith("perf/")}
    assert names == {"perf/step_seconds", "perf/peak_memory_gb"}
    with pytest.raises(ValueError, match="peak_tflops must be > 0 or null, got 0"):
        Throughput(peak_tflops=0)


PRECISIONS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}


@pytest.mark.parametrize(("precision", "dtype"), PRECISIONS.items())
def test_the_peak_of_a_known_gpu_is_that_of_the_precision(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "get_available_flops", lambda device, of: (str(device), of))
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 1)), precision=precision)
    assert throughput._known_peak(trainer) == ("cuda:1", dtype)
