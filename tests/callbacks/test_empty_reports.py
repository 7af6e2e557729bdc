"""Callbacks that report have nothing to say about nothing, and never end a run over it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger

from lit_rft.callbacks import AnswerTable, CompletionText, CriticCalibration, EpisodeText, ScoreTable, Throughput


class NothingToReport(BoringModel):
    """A module that has done nothing yet."""

    def __init__(self) -> None:
        super().__init__()
        self.evaluator = SimpleNamespace(results=[], table={})
        self.actor_critic = SimpleNamespace(q_and_returns=[])
        self.samples: list[Any] = []
        self.num_tokens = 0


@pytest.mark.parametrize("logs", [True, False])
def test_reports_of_nothing(logs: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = [AnswerTable(), CompletionText(every_n_batches=1), CriticCalibration(), EpisodeText(), ScoreTable()]
    trainer = L.Trainer(
        max_epochs=2,
        limit_train_batches=2,
        limit_val_batches=2,
        limit_test_batches=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=TensorBoardLogger(str(tmp_path), name="tb", version="") if logs else False,
        callbacks=[*callbacks, Throughput()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = NothingToReport()
    trainer.fit(module)
    assert trainer.global_step == 4 and trainer.callback_metrics["perf/tokens_per_second"] == 0
    trainer.test(module, verbose=False)
    assert "benchmark" not in capsys.readouterr().out and not (tmp_path / "scores.json").exists()


def test_a_callback_of_another_kind_of_evaluation_names_the_right_one() -> None:
    kinds = (("PromptBatch", ScoreTable(), "use AnswerTable"), ("EpisodeJobs", AnswerTable(), "use ScoreTable"))
    for kind, callback, advice in kinds:
        stage: Any = SimpleNamespace(evaluator=SimpleNamespace(table={}, batch_kind=SimpleNamespace(name=kind)))
        with pytest.raises(TypeError, match=f"is evaluated on {kind}, and not on .*: {advice}"):
            callback.scores(stage)


def test_a_table_of_scores_without_episodes_or_repetitions(capsys: pytest.CaptureFixture[str]) -> None:
    """Means over nothing are NaN."""
    from lit_rft.metrics import COLUMNS

    nan = float("nan")
    scores = {"walk": dict.fromkeys(COLUMNS, nan), "mean": dict.fromkeys(COLUMNS, nan)}
    answers = {"mean": dict.fromkeys(("problems", "k", "average", "low", "high", "pass"), nan)}
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0)
    for callback, table in ((ScoreTable(), scores), (AnswerTable(), answers)):
        stage: Any = SimpleNamespace(evaluator=SimpleNamespace(table=table))
        callback.on_validation_end(trainer, stage)
    assert capsys.readouterr().out.count("mean") == 2
