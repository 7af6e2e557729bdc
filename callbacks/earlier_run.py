"""The output of an earlier run in the folder of a new one, removed when that one starts."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from lit_rft.callbacks.loggers import FOLDERS


class EarlierRun(L.Callback):
    """Removes the output of an earlier run once the data are read and training starts.

    A command that fails before, for example for a wrong path of the data, leaves the earlier run unchanged, but for the
    file of a `CSVLogger` with a fixed version, which Lightning removes.

    Args:
        paths: files and folders to remove.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.remove(trainer)

    def remove(self, trainer: L.Trainer) -> None:
        """Remove the output now."""
        in_use = [Path(getattr(logger, "log_dir", None) or "").resolve() for logger in trainer.loggers]
        for path in self.paths if trainer.is_global_zero else ():
            if path.resolve() in in_use:
                continue  # a CSVLogger with a fixed version has removed the earlier file, and writes here
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self.paths = []  # another `fit` of the same trainer removes nothing
        trainer.strategy.barrier("the earlier run is removed")


def output_of_run(folder: Path, checkpoints: Path) -> list[Path]:
    """Return a run's checkpoints, curves, rollouts, texts, tables, figures, page, results and configs of evaluations.

    Args:
        folder: of the run.
        checkpoints: folder of its checkpoints.
    """
    curves = [*folder.glob("tensorboard/events.out.tfevents.*"), *folder.glob("lightning_logs/version_*")]
    configs = (f"config_{verb}.yaml" for verb in ("validate", "test", "predict"))
    results = ("scores.json", "costs.json", "costs_fit.json", "summary_fit.json")
    names = (*FOLDERS, "rollouts", "run.html", *results, *configs)
    return [*checkpoints.glob("*.ckpt"), *curves, *(folder / name for name in names)]
