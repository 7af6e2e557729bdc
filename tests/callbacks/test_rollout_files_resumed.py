"""Rollouts on disk of runs that are killed or stopped, and resumed: each step and each evaluation once."""

import os
from pathlib import Path
from signal import SIGTERM
from typing import Any

import lightning as L
import pytest
from grpo_stage import make_grpo, make_prompts
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.callbacks import RandomState, RolloutFiles, RunCheckpoint
from lit_rft.callbacks.signals import StoppedBySignal
from lit_rft.datamodules import PromptLoader
from lit_rft.records import GroupRecord, read_rollouts


class Killed(Exception):
    pass


class Kill(L.Callback):
    """Stops a run in the middle of a batch, as far as its files are concerned: nothing is cleaned up."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.batch:
            raise Killed


def checkpointed(model: Path, folder: Path, steps: int, *more: L.Callback, resume: bool = False) -> None:
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, default_root_dir=folder,
        callbacks=[RolloutFiles(share=1.0), *more, RunCheckpoint(every_n_steps=2)],
    )  # fmt: skip
    stage = make_grpo(model)
    trainer.fit(stage, PromptLoader(make_prompts(model), batch_size=2), ckpt_path="last" if resume else None)


def test_a_killed_and_resumed_run_has_every_step_once(tiny_model_folder: Path, tmp_path: Path) -> None:
    checkpointed(tiny_model_folder, tmp_path / "straight", 6)
    with pytest.raises(Killed):
        checkpointed(tiny_model_folder, tmp_path / "killed", 6, Kill(5))
    path = tmp_path / "killed" / "rollouts" / "train.jsonl"
    assert [group.batch for group in read_rollouts(path)] == [b for b in range(5) for _ in range(2)]
    path.write_bytes(path.read_bytes()[:-9])  # the checkpoint is of step 4; the last line is incomplete
    checkpointed(tiny_model_folder, tmp_path / "killed", 6, resume=True)
    assert without_values(read_rollouts(path)) == without_values(read_rollouts(tmp_path / "straight"))


class EndInEvaluation(L.Callback):
    def __init__(self, step: int, signal: int | None) -> None:
        self.step, self.signal = step, signal

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and self.signal is not None:
            os.kill(os.getpid(), self.signal)
        elif trainer.global_step == self.step:
            raise Killed


def evaluated(model: Path, folder: Path, *more: L.Callback, resume: bool = False) -> None:
    logger = TensorBoardLogger(folder, name="", version="")
    trainer = L.Trainer(
        max_steps=3, max_epochs=-1, accelerator="cpu", logger=logger, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, val_check_interval=1, check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[RandomState(), RolloutFiles(share=1.0), *more, RunCheckpoint(every_n_steps=1)],
    )  # fmt: skip
    loader = PromptLoader(make_prompts(model), batch_size=2)
    problems = PromptLoader(make_prompts(model)[:2], batch_size=1, shuffle=False)
    trainer.fit(make_grpo(model), loader, problems, ckpt_path="last" if resume else None)


@pytest.fixture(scope="module")
def straight_run(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with evaluations that is never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    evaluated(tiny_model_folder, folder)
    return folder


@pytest.mark.processes
@pytest.mark.parametrize(
    ("step", "signal"), [pytest.param(2, None, marks=pytest.mark.slow), (3, None), (3, SIGTERM)]
)  # fmt: skip
def test_a_run_that_ends_in_an_evaluation_repeats_it(
    step: int, signal: int | None, straight_run: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Killed or stopped; in the last one, too, after which a resumed run has nothing left to train."""
    with pytest.raises(Killed if signal is None else StoppedBySignal):
        evaluated(tiny_model_folder, tmp_path / "killed", EndInEvaluation(step, signal))
    evaluated(tiny_model_folder, tmp_path / "killed", resume=True)
    resumed, straight = (
        [group for group in read_rollouts(folder) if group.split == "validation"]
        for folder in (tmp_path / "killed", straight_run)
    )
    assert [group.step for group in straight] == [1, 1, 2, 2, 3, 3]
    assert without_values(resumed) == without_values(straight)
    assert scores(tmp_path / "killed") == scores(straight_run)


def scores(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("val/") or tag == "epoch"]
    assert len(tags) > 2
    return {tag: {point.step: point.value for point in events.Scalars(tag)} for tag in tags}


def without_values(groups: list[GroupRecord]) -> list[Any]:
    return [(g.step, g.batch, g.group, [(r.id, r.text, r.reward, r.trace) for r in g.rollouts]) for g in groups]
