"""The time that is left, in the progress bar."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from every_stage import make
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.demos.boring_classes import BoringModel
from rich.progress import Progress

from lit_rft._phases import Phases
from lit_rft.callbacks import RunProgressBar
from lit_rft.callbacks.progress_bar import PhaseColumn, seconds_left, share_done


def make_trainer(**values: Any) -> Any:
    standard = {"max_steps": -1, "max_epochs": -1, "global_step": 0, "num_training_batches": math.inf, "callbacks": [],
                "training": True, "fit_loop": SimpleNamespace(total_batch_idx=-1)}  # fmt: skip
    return SimpleNamespace(**{**standard, **values})


def test_the_share_of_steps_or_of_batches() -> None:
    assert share_done(make_trainer()) == 0
    assert share_done(make_trainer(max_steps=20, global_step=5)) == 0.25
    epochs = {"max_epochs": 2, "num_training_batches": 10, "fit_loop": SimpleNamespace(total_batch_idx=14)}
    assert share_done(make_trainer(**epochs)) == 0.75
    assert share_done(make_trainer(**epochs, max_steps=20, global_step=18)) == 0.9  # the end that comes first
    assert share_done(make_trainer(max_steps=4, global_step=6)) == 1


def test_seconds_left() -> None:
    assert seconds_left(make_trainer(), 10) is None
    trainer = make_trainer(max_steps=20, global_step=5)
    assert seconds_left(trainer, 10) == pytest.approx(30)
    assert seconds_left(trainer, 10, first_share=0.2) == pytest.approx(150)  # resumed after 4 steps
    assert seconds_left(make_trainer(max_steps=20, global_step=5, training=False), 10) is None
    timer = Timer(duration={"seconds": 8})
    trainer.callbacks = [timer]
    assert seconds_left(trainer, 10) == pytest.approx(8)


@pytest.mark.parametrize(("epochs", "expected"), [(-1, "Epoch 3"), (5, "Epoch 3/4")])
def test_a_run_until_max_steps_has_no_last_epoch(epochs: int, expected: str) -> None:
    bar = RunProgressBar()
    bar._trainer = L.Trainer(max_epochs=epochs, max_steps=9, logger=False, enable_checkpointing=False, callbacks=[bar])
    assert bar._get_train_description(3).strip() == expected


def test_the_phase_is_shown_while_a_bar_moves() -> None:
    phases = Phases()
    column, progress = PhaseColumn(phases), Progress()
    progress.add_task("train", total=2)
    (task,) = progress.tasks
    with phases.measure("rollout"):
        phases.report(3, 8)
        assert column.render(task).plain == "rollout 3/8"
        progress.update(task.id, completed=2)
        assert column.render(task).plain == ""


@pytest.mark.parametrize("kind", ["grpo", "episodes"])
def test_completions_and_episodes_report_as_they_finish(
    kind: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    stage, data = make(kind, tiny_model_folder, tmp_path)
    report = stage.phases.report

    def keep(done: int, total: int) -> None:
        report(done, total)
        seen.append(stage.phases.status)

    monkeypatch.setattr(stage.phases, "report", keep)
    bar = RunProgressBar()
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, callbacks=[bar], limit_val_batches=0,
                        default_root_dir=tmp_path, enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    loaded = {"datamodule": data} if isinstance(data, L.LightningDataModule) else {"train_dataloaders": data}
    trainer.fit(stage, **loaded)
    assert seen == [f"rollout {number}/4" for number in (1, 2, 3, 4)]
    assert isinstance(bar.configure_columns(trainer)[-1], PhaseColumn)


class Shown(L.Callback):
    """Keeps what the bar shows."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        bar = trainer.progress_bar_callback
        assert isinstance(bar, RunProgressBar)
        self.items.append(bar.get_metrics(trainer, pl_module))


def test_the_bar_of_a_run_shows_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    trainer = L.Trainer(max_steps=4, accelerator="cpu", logger=False, callbacks=[RunProgressBar(), shown],
                        limit_val_batches=0, enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(BoringModel())
    assert [next(iter(items)) for items in shown.items] == ["eta"] * 4
    assert shown.items[-1]["eta"] == "0.0 s"
    assert "eta: " in capsys.readouterr().out
