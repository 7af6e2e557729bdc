"""The folder of a run's checkpoints: it belongs to one run, and one process trains in it at a time."""

from pathlib import Path
from typing import Any

import lightning as L

from lit_rft._files import FolderLock


def refuse_other_run(folder: Path, ckpt_path: Any) -> None:
    """Check that a run does not overwrite the checkpoints of another one.

    Args:
        folder: of its checkpoints.
        ckpt_path: checkpoint to resume from: None, a file, or a keyword such as "last".

    Raises:
        FileExistsError: The folder holds checkpoints and the run does not resume one of them.
    """
    names = sorted(path.name for path in folder.glob("*.ckpt"))
    keyword = ckpt_path is not None and not str(ckpt_path).endswith(".ckpt")
    if not names or keyword or (ckpt_path is not None and Path(ckpt_path).resolve().parent == folder.resolve()):
        return
    raise FileExistsError(
        f"{folder} holds the checkpoints of a run ({', '.join(names)}), which would be overwritten: resume that "
        "run with --ckpt_path last, name another folder with --trainer.default_root_dir, or remove the run with "
        "--overwrite true"
    )


class TrainingLock:
    """Keeps other processes from training in a folder."""

    def __init__(self) -> None:
        self._lock: FolderLock | None = None

    def acquire(self, trainer: L.Trainer, folder: Path) -> None:
        """Take the lock, in the first process of a run; nothing happens if it is held already.

        Raises:
            BlockingIOError: Another process trains in this folder; in all processes of the run.
        """
        problem = ""
        if trainer.is_global_zero and self._lock is None:
            try:
                self._lock = FolderLock(folder)
            except BlockingIOError:
                problem = (
                    f"another process trains in this folder and writes {folder}: wait for it, or set another "
                    "trainer.default_root_dir"
                )
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise BlockingIOError(problem)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
