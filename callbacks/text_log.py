"""Texts and figures for all loggers; files in the run's folder for loggers without support."""

from pathlib import Path
from typing import Any

import lightning as L


def log_text(trainer: L.Trainer, tag: str, text: str) -> None:
    """Send a Markdown text to all loggers, from the first process.

    Uses TensorBoard's `add_text` or the `log_text` of Weights & Biases if a logger has them; for others the text is
    appended to `<default_root_dir>/texts/<tag>.md`. Without a logger nothing is written.
    """
    if not trainer.is_global_zero:
        return
    step, without = trainer.global_step, False
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_text"):
            experiment.add_text(tag, text, step)
        elif hasattr(logger, "log_text"):
            logger.log_text(key=tag, columns=["step", "text"], data=[[step, text]])
        else:
            without = True
    if without:
        path = _file(trainer, "texts", f"{tag}.md")
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"## step {step}\n\n{text}\n\n")


def log_figure(trainer: L.Trainer, tag: str, figure: Any) -> None:
    """Send a matplotlib figure to all loggers, or write it to `<default_root_dir>/figures/<tag>-<step>.png`."""
    if not trainer.is_global_zero:
        return
    step, without = trainer.global_step, False
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_figure"):
            experiment.add_figure(tag, figure, step)
        elif hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[figure])
        else:
            without = True
    if without:
        figure.savefig(_file(trainer, "figures", f"{tag}-{step}.png"))


def _file(trainer: L.Trainer, folder: str, name: str) -> Path:
    path = Path(trainer.default_root_dir) / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
