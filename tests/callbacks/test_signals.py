"""A signal ends a run with its last complete step saved; going on from there equals never having stopped."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger

from lit_rft.callbacks import AdapterExport, AtomicCheckpointIO, RandomState, RunCheckpoint
from lit_rft.callbacks.signals import StoppedBySignal
from lit_rft.models import LoraSettings
from lit_rft.testing.tiny_stage import make_loader, make_stage, trained

DROPOUT = LoraSettings(rank=4, alpha=8, dropout=0.2, target_modules="all-linear")


class Send(L.Callback):
    """Sends this process a signal, once, at some point of the step that begins after `step` others."""

    def __init__(self, number: int, place: str, step: int = 5) -> None:
        self.number, self.place, self.step, self.stops = number, place, step, []  # type: ignore[var-annotated]

    def _at(self, trainer: Any, place: str) -> None:
        if place == self.place and trainer.global_step == self.step + (place == "update"):
            self.place = ""
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self._at(trainer, "rollout")  # before any update of this batch

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        log, backward = module.log_dict, module.manual_backward

        def log_dict(*args: Any, **kwargs: Any) -> None:  # of the gradients' norm: weights have changed by then
            self._at(trainer, "update")
            log(*args, **kwargs)

        def manual_backward(loss: Any) -> None:  # random numbers of dropout are drawn by now
            self._at(trainer, "backward")
            backward(loss)

        module.log_dict, module.manual_backward = log_dict, manual_backward

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self._at(trainer, "validation")

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self._at(trainer, "end")


class LoggedSteps(Logger):
    """Keeps the optimiser steps of which metrics were logged."""

    name = version = None

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            assert step is not None
            self.steps.append(step)


def run(
    stage: Any, model: Path, folder: Path, *callbacks: Any, ckpt_path: str | None = None, steps: int = 8, **options: Any
) -> Any:
    settings = {"logger": False, "plugins": [AtomicCheckpointIO()], **options}
    saving = settings.pop("saving", None) or RunCheckpoint(every_n_steps=100)
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        default_root_dir=folder,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        **settings,
        callbacks=[*callbacks, saving, RandomState(), AdapterExport()],
    )
    stage.validation_step = lambda *_: None
    loader = make_loader(model, batch_size=2, episodes=7)  # 4 steps an epoch
    trainer.fit(stage, loader, torch.utils.data.DataLoader([0]), ckpt_path=ckpt_path)
    return stage


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Ctrl-C arrives, also where the tests themselves run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def uninterrupted(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    stage = make_stage(tiny_model_folder, lora=DROPOUT)
    return trained(run(stage, tiny_model_folder, tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize(
    ("place", "number", "saved"),
    [
        ("rollout", signal.SIGTERM, 5),
        ("backward", signal.SIGUSR1, 5),
        ("update", signal.SIGTERM, 6),  # a step that has begun is finished
        ("validation", signal.SIGINT, 5),
    ],
)
def test_a_signal_saves_the_last_complete_step(
    place: str, number: int, saved: int, tiny_model_folder: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    stage = make_stage(tiny_model_folder, lora=DROPOUT)
    ended = []
    stage.teardown = lambda stage: ended.append(stage)  # type: ignore[method-assign]
    with pytest.raises(StoppedBySignal) as stopped:
        run(stage, tiny_model_folder, tmp_path, Send(number, place))
    assert stopped.value.code == 128 + number and ended == ["fit"]  # workers are ended
    assert before == {each: signal.getsignal(each) for each in before} or _all_inactive(before)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == saved
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    resumed = make_stage(tiny_model_folder, lora=DROPOUT, seed=99)
    run(resumed, tiny_model_folder, tmp_path, ckpt_path="last")
    for name, weight in uninterrupted.items():
        assert torch.equal(weight, trained(resumed)[name]), name


def _all_inactive(before: dict[Any, Any]) -> bool:
    """Lightning puts a handler of ours back, which then hands signals on to what was there before us."""
    handlers = [signal.getsignal(number) for number in before]
    return all(not getattr(getattr(handler, "__self__", None), "_active", False) for handler in handlers)


@pytest.mark.parametrize(
    ("step", "evaluates", "together"),
    [(1, False, False), (1, True, True), (3, False, True), (7, False, True), (7, True, False)],
)
def test_the_step_at_which_a_run_stops_is_logged(
    step: int, evaluates: bool, together: bool, tiny_model_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Within an epoch, at its end, and in the last step; several processes agree on the step."""
    if together:
        monkeypatch.setattr(RunCheckpoint, "_together", staticmethod(lambda trainer: True))
        monkeypatch.setattr(RunCheckpoint, "_agreed_signal", lambda callback, trainer: callback._signals.received)
    logged = LoggedSteps()
    options = {"logger": logged, "limit_val_batches": 1 if evaluates else 0}
    with pytest.raises(StoppedBySignal, match="143"):
        run(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, Send(signal.SIGTERM, "update", step), **options)
    assert logged.steps == list(range(1, step + 2))
    monkeypatch.undo()
    run(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, ckpt_path="last", **options)
    assert logged.steps == list(range(1, 9))


class CheckedIO(AtomicCheckpointIO):
    """Checks that the metrics of a checkpoint's step are logged before it is written."""

    def __init__(self, logged: LoggedSteps) -> None:
        super().__init__()
        self.logged, self.saved = logged, []  # type: ignore[var-annotated]

    def save_checkpoint(self, checkpoint: dict[str, Any], *args: Any, **options: Any) -> None:
        self.saved.append(checkpoint["global_step"])
        assert self.logged.steps == list(range(1, self.saved[-1] + 1))
        super().save_checkpoint(checkpoint, *args, **options)


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_step_is_logged_before_its_checkpoint_is_written(
    evaluates: bool, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """A run killed between the two repeats the step; the other way round, its metrics would be missing."""
    logged = LoggedSteps()
    checked = CheckedIO(logged)
    run(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, logger=logged, plugins=[checked],
        saving=RunCheckpoint(every_n_steps=1), limit_val_batches=int(evaluates), steps=5)  # fmt: skip
    assert checked.saved == [1, 2, 3, 4, 5]


def test_a_signal_after_the_last_step_ends_the_process_with_everything_saved(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoppedBySignal, match="143"):
        stage = make_stage(tiny_model_folder)
        run(stage, tiny_model_folder, tmp_path, Send(signal.SIGTERM, "end", 2), steps=2)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_a_signal_before_the_first_step_leaves_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedBySignal):
        run(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, Send(signal.SIGTERM, "rollout", 0))
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_second_interrupt_ends_a_step_that_has_begun(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Without a checkpoint, whose weights would be half updated."""

    class Twice(Send):
        def _at(self, trainer: Any, place: str) -> None:
            if place == self.place and trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as stopped:
            run(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, Twice(signal.SIGINT, "update"))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from here on
    assert stopped.value.code == 1 and not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_signal_ends_evaluation_too(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage: Any = make_stage(tiny_model_folder)
    stage.test_step = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[RunCheckpoint()],
        enable_progress_bar=False,
    )  # fmt: skip
    with pytest.raises(StoppedBySignal, match="143"):
        trainer.test(stage, torch.utils.data.DataLoader([0, 1]), verbose=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_was_lost_stops_at_the_next_batch(tiny_model_folder: Path, tmp_path: Path) -> None:
    """As that of a destructor is: Python prints and forgets it."""
    stage: Any = make_stage(tiny_model_folder)
    steps: list[Any] = []

    class Destroyed:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def test_step(batch: Any, batch_idx: int) -> None:
        steps.append(batch_idx)
        Destroyed()

    stage.test_step = test_step
    trainer = L.Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[RunCheckpoint()],
        enable_progress_bar=False,
    )  # fmt: skip
    with pytest.raises(StoppedBySignal, match="143"):
        trainer.test(stage, torch.utils.data.DataLoader(range(3)), verbose=False)
    assert steps == [0]
