"""The table at the end of training."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_rft.callbacks import FitSummary
from lit_rft.callbacks.durations import duration
from lit_rft.testing import fit, make_loader, make_stage


class Losses(L.Callback):
    """Keeps the loss of each batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def test_metrics_at_the_start_and_at_the_end(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    losses = Losses()
    fit(make_stage(tiny_model_folder), make_loader(tiny_model_folder), 13,
        callbacks=[losses, FitSummary()], default_root_dir=tmp_path)  # fmt: skip
    summary = json.loads((tmp_path / "summary_fit.json").read_text())
    assert summary["steps"] == [0, 13] and summary["outputs"] == ["checkpoints/best.ckpt", "rollouts"]
    assert summary["seconds"] > 0 and 0.1 < summary["peak_memory_gb"] < 100
    loss = summary["metrics"]["train/loss"]
    assert loss["first"] == pytest.approx(sum(losses.values[:10]) / 10)
    assert loss["last"] == pytest.approx(sum(losses.values[-10:]) / 10) and loss["last"] < loss["first"]
    printed = capsys.readouterr().out
    assert "fit: steps 0 to 13 in" in printed and f"{loss['last']:.4g}" in printed and "rollouts" in printed


class Scores(L.Callback):
    """Logs a score in each evaluation: the number of optimiser steps."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.log("val/score", float(trainer.global_step))


@pytest.mark.parametrize(("every", "first", "last"), [(2, 2.0, 4.0), (4, None, 4.0)])
def test_the_last_evaluation_is_in_it(
    every: int, first: float | None, last: float, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """It follows the last batch."""
    loader = make_loader(tiny_model_folder)
    trainer = L.Trainer(
        max_steps=4, max_epochs=-1, val_check_interval=every, check_val_every_n_epoch=None, num_sanity_val_steps=1,
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[Scores(), FitSummary()],
    )  # fmt: skip
    stage = make_stage(tiny_model_folder)
    stage.validation_step = lambda *args: None  # type: ignore[method-assign, assignment]
    trainer.fit(stage, loader, torch.utils.data.DataLoader([0]))  # type: ignore[arg-type]
    summary = json.loads((tmp_path / "summary_fit.json").read_text())
    assert summary["metrics"]["val/score"] == {"first": first, "last": last}
    assert "val/score" in json.dumps(summary) and "train/loss" in summary["metrics"]


def test_a_dry_run_prints_nothing(tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(make_stage(tiny_model_folder), make_loader(tiny_model_folder), 1,
        callbacks=[FitSummary()], default_root_dir=tmp_path, fast_dev_run=1)  # fmt: skip
    assert "fit: steps" not in capsys.readouterr().out and not (tmp_path / "summary_fit.json").exists()


@pytest.mark.parametrize(("seconds", "text"), [(4.25, "4.2 s"), (61, "1 min 01 s"), (3725, "1 h 02 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
