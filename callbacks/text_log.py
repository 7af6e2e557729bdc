"""Texts and figures for all loggers; files in the run's folder for loggers without support."""

from pathlib import Path
from typing import Any

import lightning as L


def log_text(trainer: L.Trainer, tag: str, text: str) -> None:
    """Send a Markdown text to all loggers, from the first process.

    Uses TensorBoard's `add_text`, the `log_text` of Weights & Biases, or MLflow's artifacts if a logger has them; for
    others (CSV files) the text is appended to `<default_root_dir>/texts/<tag>.md`. Without a logger nothing is written.
    """
    if not trainer.is_global_zero:
        return
    step, without = trainer.global_step, False
    logger: Any
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_text"):
            experiment.add_text(tag, text, step)
        elif hasattr(logger, "log_text"):
            logger.log_text(key=tag, columns=["step", "text"], data=[[step, text]])
        elif _takes_artifacts(logger, "log_text"):
            experiment.log_text(logger.run_id, text, f"texts/{tag}-{step}.md")
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
    logger: Any
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_figure"):
            experiment.add_figure(tag, figure, step)
        elif hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[figure])
        elif _takes_artifacts(logger, "log_figure"):
            experiment.log_figure(logger.run_id, figure, f"figures/{tag}-{step}.png")
        else:
            without = True
    if without:
        figure.savefig(_file(trainer, "figures", f"{tag}-{step}.png"))


def _takes_artifacts(logger: Any, method: str) -> bool:
    """Return whether a logger's client stores artifacts by run, as MLflow's does."""
    return hasattr(getattr(logger, "experiment", None), method) and getattr(logger, "run_id", None) is not None


def _file(trainer: L.Trainer, folder: str, name: str) -> Path:
    path = Path(trainer.default_root_dir) / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
