"""The scores of an evaluation, of episodes or of problems: in the console, and as a file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table

from lit_rft._files import write_json
from lit_rft.callbacks.dry_run import is_dry_run
from lit_rft.callbacks.loggers import log_table, step_of

Scores = Mapping[str, dict[str, float]]
Cells = Callable[[dict[str, float]], dict[str, str]]


class ScoreTable(L.Callback):
    """Prints and logs the scores by task or benchmark after each validation and test, and writes those of a test.

    `<default_root_dir>/scores.json`: task or benchmark -> column -> value, null without any. `costs.json`: the
    evaluator's `costs`, for episodes their number, environment steps, utterances, tokens and seconds. Of a stage
    without evaluator, such as `DPO`, the table has the metrics that it has logged.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer, pl_module, f"validation, step {step_of(trainer)}", "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        evaluator = self._report(trainer, pl_module, "test", "test")
        if trainer.is_global_zero and evaluator.table and not is_dry_run(trainer):
            write_json(Path(trainer.default_root_dir) / "scores.json", evaluator.table)
            if evaluator.costs:
                write_json(Path(trainer.default_root_dir) / "costs.json", evaluator.costs)

    def _report(self, trainer: L.Trainer, module: L.LightningModule, title: str, prefix: str) -> Any:
        """Report the table of the stage's evaluator, or of its metrics, and return its owner."""
        evaluator: Any = getattr(module, "evaluator", None)
        evaluator = _LoggedMetrics(trainer, f"{prefix}/") if evaluator is None else evaluator
        if not trainer.is_global_zero or not evaluator.table:
            return evaluator
        columns, rows = score_cells(evaluator.table, evaluator.row_name, evaluator.cells)
        Console().print(score_table(columns, rows, title))
        if not getattr(trainer, "sanity_checking", False):
            log_table(trainer, f"{prefix}/scores", columns, rows)
        return evaluator


class _LoggedMetrics:
    """The metrics of an evaluation as the table of an evaluator."""

    row_name, costs = "metrics", None

    def __init__(self, trainer: L.Trainer, prefix: str) -> None:
        metrics = trainer.callback_metrics.items()
        values = {name.removeprefix(prefix): float(value) for name, value in metrics if name.startswith(prefix)}
        self.table = {"mean": values} if values else {}

    def cells(self, row: dict[str, float]) -> dict[str, str]:
        return {name: f"{value:.4g}" for name, value in row.items()}


def score_cells(scores: Scores, row_name: str, cells: Cells) -> tuple[list[str], list[list[str]]]:
    """Return the headings and rows of an evaluator's table, as texts.

    Args:
        scores: row -> column -> value; the row `mean` comes last.
        row_name: heading of the rows' names.
        cells: formats a row, see `lit_rft.stages.Evaluator`.
    """
    rows = {name: cells(row) for name, row in scores.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    texts = [[name or "-", *(row.get(column, "-") for column in columns)] for name, row in rows.items()]
    return [row_name, *columns], texts


def score_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> Table:
    """Format the table of `score_cells` for the console."""
    table = Table(title=title)
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        if row[0] == "mean":
            table.add_section()
        table.add_row(*row, style="bold" if row[0] == "mean" else None)
    return table
