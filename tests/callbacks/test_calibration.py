"""The calibration plot, read back from TensorBoard."""

import logging
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.callbacks import CriticCalibration, RandomState, RunCheckpoint
from lit_rft.testing.tiny_stage import fit, make_loader, make_offline


def test_each_epoch_leaves_a_plot_and_its_figures(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, logger = make_offline(tiny_model_folder), TensorBoardLogger(str(tmp_path), name="tb", version="")
    fit(stage, make_loader(tiny_model_folder, outcomes=True), 4, callbacks=[CriticCalibration()], logger=logger)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert {"calibration/high", "calibration/low"} <= set(events.Tags()["images"])
    for level in ("high", "low"):
        assert len(events.Scalars(f"train/{level}/q_bias")) == 2  # epochs
    assert -1 <= events.Scalars("train/low/q_return_correlation")[-1].value <= 1
    # every other episode was cut: its high-level returns are not known; each episode counts once an epoch
    known = sum(len(q) for level, q, _ in stage.actor_critic.q_and_returns if level == "high")
    loader = make_loader(tiny_model_folder, outcomes=True)
    assert known == sum(
        t.num_decisions for e in loader.episodes for t in e if t.level == "high" and t.outcomes[-1].terminated
    )


class Kill(L.Callback):
    """Ends a run at the beginning of a training step, or in the evaluation after it."""

    def __init__(self, step: int, evaluation: bool) -> None:
        self.step, self.evaluation = step, evaluation

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if not self.evaluation and trainer.global_step == self.step:
            raise InterruptedError

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        if self.evaluation and trainer.global_step == self.step:
            raise InterruptedError


def evaluated(model: Path, folder: Path, *more: L.Callback, resume: bool = False) -> dict[str, dict[int, float]]:
    """Train two epochs of four steps, with an evaluation after each."""
    stage: Any = make_offline(model)
    stage.validation_step = lambda *_: None
    callbacks = [CriticCalibration(), *more, RandomState(), RunCheckpoint(every_n_steps=1)]
    logger = TensorBoardLogger(folder, name="tb", version="")
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=folder, logger=logger, callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = make_loader(model, outcomes=True, batch_size=2, episodes=7)
    trainer.fit(stage, loader, torch.utils.data.DataLoader([0]), ckpt_path="last" if resume else None)
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "/q_" in tag]
    return {tag: {point.step: point.value for point in events.Scalars(tag)} for tag in tags}


@pytest.fixture(scope="module")
def undisturbed(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    return evaluated(tiny_model_folder, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(("step", "evaluation"), [(2, False), (4, False), (4, True), (6, False), (8, True)])
def test_a_resumed_run_reports_the_decisions_of_all_steps_of_an_epoch(
    step: int, evaluation: bool, undisturbed: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Killed within an epoch, between two, and in the evaluation at the end of one."""
    with pytest.raises(InterruptedError):
        evaluated(tiny_model_folder, tmp_path, Kill(step, evaluation))
    resumed = evaluated(tiny_model_folder, tmp_path, resume=True)
    assert resumed == undisturbed and set(resumed["train/low/q_bias"]) == {4, 8}


def test_levels_without_known_returns_are_skipped(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All episodes were cut in the middle of a subgoal: no return of the high level is known."""
    loader = make_loader(tiny_model_folder, outcomes=True)
    loader.episodes = [episode for episode in loader.episodes if not episode[0].outcomes[-1].terminated] * 2
    loader.number = len(loader.episodes)
    stage, logger = make_offline(tiny_model_folder), TensorBoardLogger(str(tmp_path), name="tb", version="")
    with caplog.at_level(logging.INFO, "lit_rft"):
        trainer = fit(stage, loader, 4, callbacks=[CriticCalibration()], logger=logger)
    assert trainer.current_epoch == 2 and not trainer.interrupted
    assert caplog.text.count("no calibration plot of the high level") == 1
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert "calibration/high" not in events.Tags()["images"]


def with_returns(q_and_returns: list[Any]) -> Any:
    """A module as far as the callback reads it."""
    return SimpleNamespace(actor_critic=SimpleNamespace(q_and_returns=q_and_returns))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_number_of_known_returns_can_be_reported(number: int, tmp_path: Path) -> None:
    """None at all, one alone, and several that are equal."""
    module = with_returns([("low", torch.ones(number), torch.zeros(number))])
    logged: list[dict[str, float]] = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append(metrics), experiment=None)
    trainer: Any = SimpleNamespace(
        is_global_zero=True, logger=logger, loggers=[logger], global_step=3, default_root_dir=str(tmp_path)
    )
    CriticCalibration().on_train_epoch_end(trainer, module)
    assert logged == ([{"train/low/q_bias": 1.0}] if number else [])
    CriticCalibration().on_train_epoch_end(trainer, with_returns([]))


def test_the_rank_correlation_is_spearmans(tmp_path: Path) -> None:
    """With equal values in both; a monotone function of the returns has 1, whatever its shape."""
    q = torch.tensor([0.5, 0.1, 0.1, 0.9, 0.4, 0.4, 0.3])
    returns = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.5])
    logged: dict[str, float] = {}
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.update(metrics), experiment=None)
    trainer: Any = SimpleNamespace(
        is_global_zero=True, logger=logger, loggers=[logger], global_step=3, default_root_dir=str(tmp_path)
    )
    module = with_returns([("high", q, returns), ("low", (3 * q).exp(), q)])
    CriticCalibration().on_train_epoch_end(trainer, module)
    assert logged["train/high/q_return_rank_correlation"] == pytest.approx(spearman(q.tolist(), returns.tolist()))
    assert logged["train/low/q_return_rank_correlation"] == pytest.approx(1.0)
    assert logged["train/low/q_return_correlation"] < 0.99


def spearman(a: list[float], b: list[float]) -> float:
    """The correlation of the ranks, by counting; equal values have their mean rank."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]

    return statistics.correlation(ranks(a), ranks(b))


def test_the_line_follows_the_bins() -> None:
    q = torch.arange(20.0)
    figure = CriticCalibration(bins=4).figure(q, 2 * q, "high")
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [2.0, 7.0, 12.0, 17.0]
    assert list(line.get_ydata()) == [4.0, 14.0, 24.0, 34.0]


def test_bins_must_be_positive() -> None:
    with pytest.raises(ValueError, match="bins must be >= 1"):
        CriticCalibration(bins=0)
