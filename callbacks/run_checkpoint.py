"""The checkpoints of a run, the last and the best, in one folder; written also when a signal ends the run."""

import contextlib
import logging
import os
import weakref
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_rft.callbacks.best_checkpoint import state_in_folder, warn_of_none, warn_of_unknown
from lit_rft.callbacks.checkpoint_folder import TrainingLock, refuse_other_run
from lit_rft.callbacks.dry_run import is_dry_run
from lit_rft.callbacks.earlier_run import EarlierRun, output_of_run
from lit_rft.callbacks.fit_loop import (
    callback_states,
    evaluation_follows,
    finished_line,
    is_last_batch,
    repeat_evaluation,
    replace_callback_state,
)
from lit_rft.callbacks.signals import StoppedBySignal, StopSignals

logger = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, and the best by a metric if one is set, in `<default_root_dir>/checkpoints`.

    The last one is written every `every_n_steps` optimiser steps, before the next batch or evaluation begins, and at
    the end of training, after its evaluation; `--ckpt_path last` resumes from it. A folder with checkpoints of another
    run is rejected, and one in which another process trains.

    SIGTERM, SIGUSR1 and Ctrl-C end a run with the state of its last complete step in `last.ckpt`, and the process with
    128 plus the signal's number (docs/runs.md).

    Args:
        every_n_steps: optimiser steps between two checkpoints.
        monitor: name of a logged metric whose best checkpoint is kept as `best.ckpt`; null for the last one only.
        mode: "max" if larger values of the metric are better, else "min".
        dirpath: another folder.
    """

    def __init__(
        self, every_n_steps: int = 10, monitor: str | None = None, mode: str = "max", dirpath: str | None = None
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1 if monitor else 0,
            save_last=True,
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._last_step = -1
        self._writes_here = False  # the folder's contents are from this run, or removed when it starts
        self._signals = StopSignals()
        self._agreed = 0  # number of the signal by which all processes stop after the same step
        self._snapshot: dict[str, Any] | None = None  # of the last complete step, by reference
        self._write_due = False  # of the snapshot, once the metrics of its step are logged
        self._evaluation_due = False  # after the batch of the state that is saved
        self._warned = False  # of a metric that is not logged
        self._lock = TrainingLock()

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints; Lightning's has `every_n_steps` in it, which may change on resume."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def state_dict(self) -> dict[str, Any]:
        best = dict(self.best_k_models)  # a copy: the state may be written after the next evaluation
        return {**super().state_dict(), "best_k_models": best, "evaluation_due": self._evaluation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluation_due = bool(state_dict.get("evaluation_due"))
        super().load_state_dict(state_in_folder(state_dict, self.dirpath, self._best_file().name))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._choose_folder(trainer)
        self._signals.install()
        super().setup(trainer, pl_module, stage)

    def _choose_folder(self, trainer: L.Trainer) -> None:
        self.dirpath = self.dirpath or os.path.join(trainer.default_root_dir, "checkpoints")

    def check_folder(self, trainer: L.Trainer, ckpt_path: Any) -> None:
        """Check that the run does not overwrite another one.

        Args:
            trainer: of the run.
            ckpt_path: checkpoint to resume from: None, a file, or a keyword such as "last".

        Raises:
            FileExistsError: If the folder holds checkpoints and the run does not resume one of them.
        """
        self._choose_folder(trainer)
        if not self._writes_here and not is_dry_run(trainer):
            refuse_other_run(Path(self.dirpath or ""), ckpt_path)

    def remove_run(self, trainer: L.Trainer, *, at_once: bool = False) -> None:
        """Let training remove the output of an earlier run in the folder when it starts, not before.

        A dry run (`fast_dev_run`) removes nothing.

        Args:
            trainer: with the folder.
            at_once: remove it now.
        """
        if is_dry_run(trainer):
            return
        self._choose_folder(trainer)
        self._writes_here = True
        earlier = EarlierRun(output_of_run(Path(trainer.default_root_dir), Path(self.dirpath or "")))
        if at_once:
            earlier.remove(trainer)
        else:
            trainer.callbacks.insert(0, earlier)  # type: ignore[attr-defined]

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """Return the files for `--ckpt_path last`. Training may start without one, evaluation must not.

        Raises:
            FileNotFoundError: There is none, except for training.
        """
        self._choose_folder(trainer)
        checkpoints: set[str] = super()._find_last_checkpoints(trainer)
        if not checkpoints and trainer.state.fn != "fit":
            raise FileNotFoundError(
                f"there is no last checkpoint in {self.dirpath}: train first, or set ckpt_path to a file"
            )
        return checkpoints

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the run's folder.

        Raises:
            FileExistsError: If this would overwrite another run.
            BlockingIOError: If another process trains in this folder.
        """
        self._choose_folder(trainer)
        sharing = (other for other in trainer.checkpoint_callbacks if isinstance(other, RunCheckpoint))
        first = next(other for other in sharing if other.dirpath == self.dirpath)
        if first is self and not is_dry_run(trainer):
            self._lock.acquire(trainer, Path(self.dirpath or ""))
        if not trainer.strategy.restore_checkpoint_after_setup:  # otherwise the resumed checkpoint is not known yet
            self.check_folder(trainer, trainer.ckpt_path)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check_folder(trainer, trainer.ckpt_path)
        super().on_train_start(trainer, pl_module)
        self._last_step = trainer.global_step
        self._snapshot, self._write_due = None, False
        self._listen(trainer)
        if self._evaluation_due:
            repeat_evaluation(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run the last evaluation if a signal ended it: a run with all its steps is not trained any more."""
        if self._evaluation_due:
            repeat_evaluation(trainer)
            self._keep_evaluation(trainer)
        if self._last_step < 0 < trainer.global_step and trainer.is_global_zero:  # it has not trained here
            logger.info("%s", finished_line(trainer))

    def _keep_evaluation(self, trainer: L.Trainer) -> None:
        """Write into the last checkpoint that its evaluation is done: each further resume would repeat it."""
        file = self._last_file()
        if not trainer.is_global_zero or Path(str(trainer.ckpt_path)).resolve() != file.resolve():
            return
        replace_callback_state(trainer, file, self.state_key, self.state_dict())

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._after_logging(trainer, pl_module)
        self._listen(trainer)

    on_test_start = on_predict_start = on_validation_start

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._after_logging(trainer, pl_module)

    def _after_logging(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the checkpoint of the last step, and stop for a signal received meanwhile.

        Not at the end of its batch: Lightning sends the metrics of a step to the loggers after all hooks of that end,
        and neither a run that stops there nor one that is killed and resumed would ever log them.

        Raises:
            StoppedBySignal: If there is a signal; in all processes, if there are several.
        """
        if self._write_due:
            self._write_due = False
            phases = getattr(pl_module, "phases", None)
            with contextlib.nullcontext() if phases is None else phases.measure("checkpoint"):
                self._save_snapshot(trainer)
                trainer.strategy.barrier("the checkpoint of a step is written")
        if not self._together(trainer):
            self._signals.release()
        elif self._agreed:
            raise StoppedBySignal(self._agreed)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._stop_if_unheard(trainer)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._stop_if_unheard(trainer)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._stop_if_unheard(trainer)

    def _stop_if_unheard(self, trainer: L.Trainer) -> None:
        """Stop for an earlier signal whose exception was lost, as in a destructor or an `except` of another library."""
        if not self._together(trainer):
            self._signals.check()

    def _listen(self, trainer: L.Trainer) -> None:
        self._signals.install()  # Lightning has installed its own handlers in the meantime
        self._signals.held = self._together(trainer)
        self._stop_if_unheard(trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._signals.held = True  # until the end of the batch the state is inconsistent

    # With manual optimisation, Lightning's own hooks save the state before the step, and no last one without a top-k

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._signals.held = True
        self._evaluation_due = evaluation_follows(trainer)
        together = self._together(trainer)
        self._agreed = self._agreed_signal(trainer) if together else 0
        # a batch may take several optimiser steps, or none
        due = trainer.global_step // self._every_n_train_steps > self._last_step // self._every_n_train_steps
        # a run killed in its last evaluation must repeat it when resumed
        self._write_due = (due and not is_last_batch(trainer)) or self._agreed > 0
        if self._write_due or not together:
            self.last_model_path = str(self._last_file())  # part of the state
            self._snapshot = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: checkpoints are by steps, not epochs."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best checkpoint."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._signals.held = True  # what a signal saves is from before the evaluation, or from after it
        self._evaluation_due = False
        if self.monitor and not is_dry_run(trainer):
            self._save_best(trainer)
        if self._snapshot is not None:
            self._snapshot["callbacks"] = callback_states(trainer)
        if not self._together(trainer):
            self._signals.release()

    def _save_best(self, trainer: L.Trainer) -> None:
        if self.monitor in trainer.callback_metrics:
            self._save_monitor_checkpoint(trainer, self._monitor_candidates(trainer))
        elif trainer.is_global_zero and not self._warned:
            self._warned = True
            warn_of_unknown(str(self.monitor), trainer.callback_metrics)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the steps since the last regular checkpoint."""
        self._signals.held = True
        self._signals.received = self._signals.received or self._agreed
        self._snapshot, self._write_due = None, False
        self._save_last(trainer)
        if self.monitor and trainer.is_global_zero and not is_dry_run(trainer):
            warn_of_none(self.monitor, self._best_file())

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the last complete step if a signal has stopped the run, and stop its workers."""
        if isinstance(exception, StoppedBySignal) or (self._write_due and not self._together(trainer)):
            self._save_snapshot(trainer)
        if isinstance(exception, StoppedBySignal):
            pl_module.teardown("" if trainer.state.fn is None else trainer.state.fn.value)
            saved = f"; resume with --ckpt_path last ({self._last_file()})" if self._last_file().is_file() else ""
            if trainer.is_global_zero:
                logger.warning("stopped by %s at step %d%s", exception.signal_name, trainer.global_step, saved)
            self._end_other_processes(trainer, exception.number)
        self._snapshot = None
        self._lock.release()
        self._signals.restore()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the signal handlers.

        Raises:
            StoppedBySignal: For a signal after the end of the run: code after the run must stop as well.
        """
        self._lock.release()
        self._signals.restore()
        self._signals.check()

    def _agreed_signal(self, trainer: L.Trainer) -> int:
        """Return, in all processes, the signal that any of them received; 0 for none."""
        number = torch.tensor(self._signals.received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return int(number)

    def _save_snapshot(self, trainer: L.Trainer) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None and snapshot["global_step"] != self._last_step and not is_dry_run(trainer):
            trainer.strategy.save_checkpoint(snapshot, self._last_file())
            self._last_step, self._writes_here = snapshot["global_step"], True
            for each in trainer.loggers if trainer.is_global_zero else ():
                each.after_save_checkpoint(weakref.proxy(self))

    def _end_other_processes(self, trainer: L.Trainer, number: int) -> None:
        """Wait until the first process is done, if all have stopped together; else forward the signal."""
        if self._agreed and self._together(trainer):
            trainer.strategy.barrier("stopped by a signal")
        elif trainer.world_size > 1 and hasattr(trainer.strategy.launcher, "kill"):
            trainer.strategy.launcher.kill(number)  # type: ignore[union-attr]

    @staticmethod
    def _together(trainer: L.Trainer) -> bool:
        """Return whether other processes take part in each step, so that none may leave alone.

        Sharded weights count as well: a snapshot of them would be a copy.
        """
        together = trainer.world_size > 1 or trainer.strategy.restore_checkpoint_after_setup
        return together and trainer.state.fn == "fit"

    def _last_file(self) -> Path:
        return Path(self.dirpath or "", f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")

    def _best_file(self) -> Path:
        return Path(self.dirpath or "", f"{self.filename}{self.FILE_EXTENSION}")

    def _save_last(self, trainer: L.Trainer) -> None:
        if self._last_step != trainer.global_step and not is_dry_run(trainer):
            self._last_step = trainer.global_step
            self._writes_here = True
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
