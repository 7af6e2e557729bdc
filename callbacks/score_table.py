"""The scores of an evaluation, of episodes or of problems: in the console, and as a file."""

from collections.abc import Callable, Mapping
from pathlib import Path

import lightning as L
from rich.console import Console
from rich.table import Table

from lit_rft._files import write_json
from lit_rft.callbacks.results import evaluator_of

Scores = Mapping[str, dict[str, float]]
Cells = Callable[[dict[str, float]], dict[str, str]]


class ScoreTable(L.Callback):
    """Prints the scores by task or benchmark after each validation and test, and writes those of a test.

    `<default_root_dir>/scores.json`: task or benchmark -> column -> value, null without any. `costs.json`: the
    evaluator's `costs`, for episodes their number, environment steps, utterances, tokens and seconds.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._print(trainer, pl_module, f"validation, step {trainer.global_step}")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._print(trainer, pl_module, "test")
        evaluator = evaluator_of(pl_module)
        if trainer.is_global_zero and evaluator.table:
            write_json(Path(trainer.default_root_dir) / "scores.json", evaluator.table)
            if evaluator.costs:
                write_json(Path(trainer.default_root_dir) / "costs.json", evaluator.costs)

    def _print(self, trainer: L.Trainer, module: L.LightningModule, title: str) -> None:
        evaluator = evaluator_of(module)
        if trainer.is_global_zero and evaluator.table:
            Console().print(score_table(evaluator.table, title, evaluator.row_name, evaluator.cells))


def score_table(scores: Scores, title: str, row_name: str, cells: Cells) -> Table:
    """Format an evaluator's table for the console.

    Args:
        scores: row -> column -> value; the row `mean` comes last.
        title: of the table.
        row_name: heading of the rows' names.
        cells: formats a row, see `lit_rft.stages.Evaluator`.
    """
    table = Table(title=title)
    table.add_column(row_name, no_wrap=True)
    rows = {name: cells(row) for name, row in scores.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        if name == "mean":
            table.add_section()
        texts = [row.get(column, "-") for column in columns]
        table.add_row(name or "-", *texts, style="bold" if name == "mean" else None)
    return table
