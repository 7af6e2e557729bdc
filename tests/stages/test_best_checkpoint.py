"""The best checkpoint: kept in a folder that was moved, and missed by name where nothing logs its metric."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_rft.callbacks import AtomicCheckpointIO, RunCheckpoint, TrainingCosts
from lit_rft.callbacks.signals import StoppedBySignal


class Scored(BoringModel):
    """Logs the next score in each evaluation."""

    def __init__(self, scores: Iterator[float]) -> None:
        super().__init__()
        self.scores = scores

    def validation_step(self, *_: Any) -> None:
        self.log("val/score", next(self.scores))


def train(
    folder: Path | str, epochs: int, *scores: float, monitor: str = "val/score", every_n_steps: int = 100, **more: Any
) -> None:
    """One step and one evaluation an epoch."""
    checkpoint = RunCheckpoint(every_n_steps=every_n_steps, monitor=monitor)
    settings: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0, "limit_train_batches": 1, "limit_val_batches": 1, "max_epochs": epochs,
    }  # fmt: skip
    resume, others = more.pop("ckpt_path", None), more.pop("more_callbacks", [])
    trainer = L.Trainer(
        **{**settings, **more}, default_root_dir=folder, plugins=[AtomicCheckpointIO()], callbacks=[checkpoint, *others]
    )
    trainer.fit(Scored(iter(scores)), ckpt_path=resume)


def best_step(folder: Path) -> int:
    step: int = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    return step


@pytest.mark.parametrize("way", ["moved", "copied", "absolute"])
def test_a_worse_score_replaces_no_best_checkpoint_after_a_move(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train("run", 1, 0.9)
    folder = tmp_path / {"moved": "elsewhere", "copied": "copy", "absolute": "run"}[way]
    if way == "moved":
        shutil.move("run", folder)
    elif way == "copied":
        shutil.copytree("run", folder)
    train(folder, 2, 0.1, ckpt_path="last")
    assert best_step(folder) == 1
    train(folder, 3, 0.95, ckpt_path="last")
    assert best_step(folder) == 3
    assert way != "copied" or best_step(tmp_path / "run") == 1  # the original keeps its own


def test_a_worse_score_replaces_no_best_checkpoint_with_another_every_n_steps(tmp_path: Path) -> None:
    train(tmp_path, 1, 0.9)
    train(tmp_path, 2, 0.1, every_n_steps=50, ckpt_path="last")
    assert best_step(tmp_path) == 1


def test_a_run_from_a_checkpoint_of_another_folder_has_no_best_one_yet(tmp_path: Path) -> None:
    train(tmp_path / "a", 1, 0.9)
    train(tmp_path / "b", 2, 0.1, ckpt_path=str(tmp_path / "a" / "checkpoints" / "last.ckpt"))
    assert best_step(tmp_path / "b") == 2 and best_step(tmp_path / "a") == 1


def test_one_run_may_have_two_callbacks_in_its_folder(tmp_path: Path) -> None:
    train(tmp_path, 2, 0.9, 0.8, more_callbacks=[RunCheckpoint()])
    train(tmp_path, 3, 0.95, more_callbacks=[RunCheckpoint()], ckpt_path="last")
    assert best_step(tmp_path) == 3


class Stop(L.Callback):
    """Ends a run by a signal at the start of a batch, after the evaluation of the batch before."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class StopInEvaluation(Stop):
    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.on_train_batch_start(trainer)


@pytest.mark.parametrize("step", [1, 2])
def test_a_signal_after_an_evaluation_keeps_its_best_checkpoint(step: int, tmp_path: Path) -> None:
    """The state that is saved is of the batch before the evaluation, which is not repeated."""
    scores = [0.5, 0.9, 0.1]
    with pytest.raises(StoppedBySignal):
        train(tmp_path, 3, *scores, more_callbacks=[Stop(step)])
    callbacks = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = (value for key, value in callbacks.items() if "RunCheckpoint" in key)
    assert float(state["best_model_score"]) == pytest.approx(scores[step - 1]) and not state["evaluation_due"]
    assert list(map(float, state["best_k_models"].values())) == pytest.approx(scores[step - 1 : step])
    train(tmp_path, 3, *scores[step:], ckpt_path="last")
    assert best_step(tmp_path) == 2


def test_the_last_evaluation_is_repeated_once(tmp_path: Path) -> None:
    """A run that a signal ended in its last evaluation has nothing to train when it is resumed."""
    with pytest.raises(StoppedBySignal):
        train(tmp_path, -1, 0.5, 0.9, max_steps=2, more_callbacks=[StopInEvaluation(2)])
    before = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    train(tmp_path, -1, 0.9, max_steps=2, ckpt_path="last", more_callbacks=[TrainingCosts()])
    after = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert best_step(tmp_path) == 2 and before["global_step"] == after["global_step"] == 2
    assert json.loads((tmp_path / "costs_fit.json").read_text())["optimizer_steps"] == 2
    train(tmp_path, -1, max_steps=2, ckpt_path="last")  # a further evaluation would miss a score
    train(tmp_path, -1, 0.1, max_steps=3, ckpt_path="last")
    assert best_step(tmp_path) == 2


def test_a_metric_that_nothing_logs_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, 2, 0.9, 0.8, monitor="val/scroe")
    first, last = [record.getMessage() for record in caplog.records if "lit_rft" in record.name]  # once each
    assert "got val/scroe, which is not logged" in first and first.endswith("logged so far: val/score")
    assert "best.ckpt: no evaluation in training has logged val/scroe" in last


def test_a_run_without_evaluation_ends_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, 1, limit_val_batches=0)
    assert "best.ckpt: no evaluation in training has logged val/score" in caplog.text


@pytest.mark.parametrize("more", [{}, {"fast_dev_run": True}])
def test_nothing_is_missed_otherwise(more: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, 1, 0.9, **more)
    assert "RunCheckpoint.monitor" not in caplog.text
