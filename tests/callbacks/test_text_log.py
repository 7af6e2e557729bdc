"""Texts reach every kind of logger."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.callbacks.answers import CompletionText
from lit_rft.callbacks.text_log import log_figure, log_text


class WandbLike(Logger):
    """The part of WandbLogger that is used."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[Any] = []

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return "1"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_text(self, key: str, columns: list[str], data: list[list[Any]]) -> None:
        self.texts.append((key, columns, data))


class MlflowLike(Logger):
    """The part of MLFlowLogger that is used: artifacts of a run, by its client."""

    run_id = "run-1"
    name = "mlflow"
    version = "1"

    def __init__(self) -> None:
        super().__init__()
        self.artifacts: list[Any] = []
        self.experiment = SimpleNamespace(log_text=self._keep, log_figure=self._keep)

    def _keep(self, run_id: str, content: Any, name: str) -> None:
        self.artifacts.append((run_id, content, name))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def make_trainer(folder: Path, *loggers: Logger) -> L.Trainer:
    return L.Trainer(default_root_dir=folder, logger=list(loggers) or False, accelerator="cpu", barebones=False,
                     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip


def test_a_text_reaches_all_loggers(tmp_path: Path) -> None:
    board, table, wandb = TensorBoardLogger(tmp_path, name="tb", version=""), CSVLogger(tmp_path), WandbLike()
    trainer = make_trainer(tmp_path, table, board, wandb)  # TensorBoard is not the first
    log_text(trainer, "val/answers", "words")
    log_text(trainer, "val/answers", "more")
    board.experiment.flush()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert events.Tags()["tensors"] == ["val/answers/text_summary"]
    assert [data for _, _, data in wandb.texts] == [[[0, "words"]], [[0, "more"]]]
    text = (tmp_path / "texts" / "val" / "answers.md").read_text()
    assert "words" in text and "more" in text


def test_a_text_is_a_file_only_where_a_logger_does_not_take_it(tmp_path: Path) -> None:
    log_text(make_trainer(tmp_path, WandbLike()), "val/answers", "words")
    log_text(make_trainer(tmp_path), "val/answers", "words")
    assert not (tmp_path / "texts").exists()


def test_texts_and_figures_are_artifacts_of_a_run_in_mlflow(tmp_path: Path) -> None:
    mlflow = MlflowLike()
    log_text(make_trainer(tmp_path, mlflow), "val/answers", "words")
    log_figure(make_trainer(tmp_path, mlflow), "calibration/high", "figure")
    assert mlflow.artifacts == [
        ("run-1", "words", "texts/val/answers-0.md"), ("run-1", "figure", "figures/calibration/high-0.png")
    ]  # fmt: skip
    assert not (tmp_path / "texts").exists() and not (tmp_path / "figures").exists()


def test_a_figure_is_a_file_for_loggers_without_figures(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    log_figure(make_trainer(tmp_path, CSVLogger(tmp_path)), "calibration/high", figure)
    assert (tmp_path / "figures" / "calibration" / "high-0.png").stat().st_size > 0


def test_answers_do_not_vanish_with_a_csv_logger(tmp_path: Path) -> None:
    answer = SimpleNamespace(prompt="1 + 1", completion="it is two", ground_truth="2", reward=1.0)
    module: Any = SimpleNamespace(evaluator=SimpleNamespace(results=[answer]))
    CompletionText().on_validation_end(make_trainer(tmp_path, CSVLogger(tmp_path)), module)
    assert "it is two" in (tmp_path / "texts" / "val" / "answers.md").read_text()
