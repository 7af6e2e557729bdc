"""The state of training within Lightning's loops, for which there is no public interface."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.call import _call_callbacks_state_dict


def is_last_batch(trainer: L.Trainer) -> bool:
    """Return whether training ends with this batch."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return True
    epochs = trainer.max_epochs
    return epochs is not None and 0 < epochs <= trainer.current_epoch + 1 and trainer.is_last_batch


def finished_line(trainer: L.Trainer) -> str:
    """Return what to do with a resumed run that has all of its steps already, in one line."""
    return (
        f"nothing to train: this run is finished, at step {trainer.global_step}, with its results in "
        f"{trainer.default_root_dir}; to go on, set a larger trainer.max_epochs or trainer.max_steps "
        f"({trainer.max_epochs} and {trainer.max_steps} now), to repeat it --overwrite true without --ckpt_path"
    )


def evaluation_follows(trainer: L.Trainer) -> bool:
    """Return whether an evaluation follows this batch."""
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    return fetcher is not None and loop.epoch_loop._should_check_val_fx(fetcher)


def callback_states(trainer: L.Trainer) -> dict[str, Any]:
    """Return the states of all callbacks, as checkpoints have them."""
    return _call_callbacks_state_dict(trainer)


def replace_callback_state(trainer: L.Trainer, file: Path, name: str, state: dict[str, Any]) -> None:
    """Replace the state of one callback in a checkpoint file."""
    files = trainer.strategy.checkpoint_io
    checkpoint = files.load_checkpoint(file, map_location="cpu", weights_only=True)
    checkpoint["callbacks"][name] = state
    files.save_checkpoint(checkpoint, file)


def repeat_evaluation(trainer: L.Trainer) -> None:
    """Run the evaluation during which an earlier process ended; Lightning takes it for done.

    It belongs to the last batch before: its metrics are logged at that step, and within that epoch.
    """
    loop, epochs = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
    connector = trainer._logger_connector
    before = loop._batches_that_stepped, epochs.completed, connector._first_loop_iter
    loop._batches_that_stepped, epochs.completed = loop.batch_progress.total.ready - 1, epochs.ready - 1
    loop.val_loop.restarting = False  # from its first batch on
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    loop._batches_that_stepped, epochs.completed, connector._first_loop_iter = before
