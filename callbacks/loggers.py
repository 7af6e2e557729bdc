"""Scalars, texts, tables and figures for all loggers; files in the run's folder where a logger has no support."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from lit_rft.callbacks.dry_run import is_dry_run

FOLDERS = ("texts", "tables", "figures")  # of the files, in the run's folder
_SHOWN = 4000  # maximum characters of a cell in Markdown


def step_of(trainer: L.Trainer) -> int:
    """Return the number of optimiser steps of the weights; outside `fit` the trainer's is 0."""
    module = getattr(trainer, "lightning_module", None)
    return int(getattr(module, "trained_steps", trainer.global_step))


def log_scalars(trainer: L.Trainer, values: Mapping[str, float], step: int | None = None) -> None:
    """Send scalars to all loggers, from the first process.

    Args:
        trainer: with the loggers.
        values: by name.
        step: of the values; None for the optimiser steps so far.
    """
    for logger in trainer.loggers if trainer.is_global_zero else ():
        logger.log_metrics(dict(values), step=step_of(trainer) if step is None else step)


def log_text(trainer: L.Trainer, tag: str, text: str) -> None:
    """Send a Markdown text to all loggers, from the first process.

    TensorBoard has texts, Weights & Biases tables with a column for them, MLflow artifacts. For other loggers (CSV
    files), and without a logger, the text is appended to `<default_root_dir>/texts/<tag>.md`.

    Args:
        trainer: with the loggers.
        tag: name of the text.
        text: in Markdown.
    """
    step = step_of(trainer)

    def send(logger: Any, experiment: Any) -> bool:
        if hasattr(experiment, "add_text"):
            experiment.add_text(tag, text, step)
        elif hasattr(logger, "log_text"):
            logger.log_text(key=tag, columns=["step", "text"], data=[[step, text]])
        elif _takes_artifacts(logger, "log_text"):
            experiment.log_text(logger.run_id, text, f"texts/{tag}-{step}.md")
        else:
            return False
        return True

    if _needs_file(trainer, send):
        _append_once(_file(trainer, "texts", f"{tag}.md"), f"## step {step}\n\n{text}\n\n")


def log_table(trainer: L.Trainer, tag: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Send a table to all loggers, from the first process.

    Weights & Biases has tables; TensorBoard gets Markdown, MLflow an artifact in Markdown. For other loggers, and
    without a logger, the rows are appended to `<default_root_dir>/tables/<tag>.jsonl`, each with its `step`.

    Args:
        trainer: with the loggers.
        tag: name of the table.
        columns: headings.
        rows: of cells; those of a column have one type: text, number or truth value.
    """
    step = step_of(trainer)

    def send(logger: Any, experiment: Any) -> bool:
        if hasattr(experiment, "add_text"):
            experiment.add_text(tag, markdown_table(columns, rows), step)
        elif hasattr(logger, "log_table"):
            logger.log_table(key=tag, columns=list(columns), data=[list(row) for row in rows])
        elif hasattr(logger, "log_text"):
            logger.log_text(key=tag, columns=list(columns), data=[list(row) for row in rows])
        elif _takes_artifacts(logger, "log_text"):
            experiment.log_text(logger.run_id, markdown_table(columns, rows), f"tables/{tag}-{step}.md")
        else:
            return False
        return True

    if _needs_file(trainer, send):
        lines = [json.dumps({"step": step, **dict(zip(columns, row, strict=True))}) + "\n" for row in rows]
        _append_once(_file(trainer, "tables", f"{tag}.jsonl"), "".join(lines))


def log_figure(trainer: L.Trainer, tag: str, figure: Any) -> None:
    """Send a figure to all loggers, or write it to `<default_root_dir>/figures/<tag>-<step>.png`.

    Args:
        trainer: with the loggers.
        tag: name of the figure.
        figure: of matplotlib.
    """
    step = step_of(trainer)

    def send(logger: Any, experiment: Any) -> bool:
        if hasattr(experiment, "add_figure"):
            experiment.add_figure(tag, figure, step)
        elif hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[figure])
        elif _takes_artifacts(logger, "log_figure"):
            experiment.log_figure(logger.run_id, figure, f"figures/{tag}-{step}.png")
        else:
            return False
        return True

    if _needs_file(trainer, send):
        figure.savefig(_file(trainer, "figures", f"{tag}-{step}.png"))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a table as Markdown; cells may contain anything."""
    lines = ["| " + " | ".join(map(_cell, columns)) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """Escape a cell, such as model output."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")
    return shown.replace("\r", " ").replace("\n", "<br>").replace("\x00", "")


def _append_once(path: Path, text: str) -> None:
    """Append a text, unless the file has it: a run that was killed repeats the steps after its last checkpoint."""
    if path.is_file() and text.encode() in path.read_bytes():  # not decoded: its end may be torn
        return
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def _needs_file(trainer: L.Trainer, send: Callable[[Any, Any], bool]) -> bool:
    """Send to each logger from the first process; true if one has no support, or there is none."""
    if not trainer.is_global_zero or is_dry_run(trainer):
        return False
    sent = [send(logger, getattr(logger, "experiment", None)) for logger in trainer.loggers]
    return not sent or not all(sent)


def _takes_artifacts(logger: Any, method: str) -> bool:
    """Return whether a logger's client stores artifacts by run, as MLflow's does."""
    return hasattr(getattr(logger, "experiment", None), method) and getattr(logger, "run_id", None) is not None


def _file(trainer: L.Trainer, folder: str, name: str) -> Path:
    path = Path(trainer.default_root_dir) / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
