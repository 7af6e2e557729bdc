"""Callbacks that report have nothing to say about nothing, and never end a run over it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger

from lit_rft.callbacks import CompletionText, CriticCalibration, EpisodeText, ScoreTable, Throughput
from lit_rft.stages import EpisodeEvaluator, ProblemEvaluator


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
    callbacks = [CompletionText(every_n_batches=1), CriticCalibration(), EpisodeText(), ScoreTable()]
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
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[None])
    kinds: list[tuple[str, Any, str]] = [
        ("PromptBatch", EpisodeText(), "use CompletionText"), ("EpisodeJobs", CompletionText(), "use EpisodeText"),
    ]  # fmt: skip
    for kind, callback, advice in kinds:
        stage: Any = SimpleNamespace(evaluator=SimpleNamespace(batch_kind=SimpleNamespace(name=kind)))
        with pytest.raises(TypeError, match=f"is evaluated on {kind}, and not on .*: {advice}"):
            callback.on_validation_end(trainer, stage)
    with pytest.raises(TypeError, match="has no evaluator, whose results this callback reports"):
        EpisodeText().on_validation_end(trainer, SimpleNamespace())  # type: ignore[arg-type]


def test_a_table_of_scores_without_episodes_or_repetitions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Means over nothing are NaN."""
    from lit_rft.metrics import COLUMNS

    nan = float("nan")
    scores = {"walk": dict.fromkeys(COLUMNS, nan), "mean": dict.fromkeys(COLUMNS, nan)}
    answers = {"mean": dict.fromkeys(("problems", "k", "average", "low", "high", "pass"), nan)}
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0, loggers=[], default_root_dir=tmp_path)
    for kind, table in ((EpisodeEvaluator, scores), (ProblemEvaluator, answers)):
        evaluator: Any = kind.__new__(kind)
        evaluator.table = table
        ScoreTable().on_validation_end(trainer, SimpleNamespace(evaluator=evaluator))  # type: ignore[arg-type]
    assert capsys.readouterr().out.count("mean") == 2
