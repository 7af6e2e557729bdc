"""Tables and plot of `luffy_demonstrations.py`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiment import interval, save_figure
from letter_sums import TESTS
from luffy_plan import DEMONSTRATIONS, LEADING, STEPS, Run, all_runs
from rich.console import Console
from rich.table import Table


def accuracies(results: Mapping[str, Any], name: str, test: str) -> dict[str, float]:
    """Return the accuracy in percent of all seeds of a run, by its folder's name."""
    rows = results["bases"] if name == "base" else results["runs"].get(name, {})
    return {seed: 100 * row["scores"][test] for seed, row in sorted(rows.items())}


def report(results: Mapping[str, Any], console: Console, picture: str) -> None:
    """Print accuracies, and differences from LUFFY over the seeds of both, and write the plot to a file."""
    tests = results.get("settings", {}).get("tests", TESTS)
    table = Table(title=f"held-out accuracy after {STEPS} steps (percent), and LUFFY's lead on the same seeds")
    for column in ("method", "demonstrations", "wrong", "seeds", *tests, f"LUFFY's lead, {tests[0]}"):
        table.add_column(column)
    table.add_row("base", "", "", str(len(results["bases"])),
                  *(interval(list(accuracies(results, "base", test).values()), 1) for test in tests))  # fmt: skip
    for run in sorted(all_runs([0], DEMONSTRATIONS), key=lambda run: (run.wrong, run.demonstrations)):
        columns = [accuracies(results, run.name, test) for test in tests]
        if not columns[0]:
            continue
        other = accuracies(results, dataclasses.replace(run, method="LUFFY").name, tests[0])
        leads = [other[seed] - value for seed, value in columns[0].items() if seed in other]
        table.add_row(
            run.method, str(run.demonstrations), f"{run.wrong:.0%}", str(len(columns[0])),
            *(interval(list(column.values()), 1) for column in columns), interval(leads, 1) if leads else "",
        )  # fmt: skip
    console.print(table)
    plot(results, tests, picture)


def plot(results: Mapping[str, Any], tests: Sequence[str], picture: str) -> None:
    """Plot accuracies against the number of demonstrations, one panel per test."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(tests), 3.4))
    for axes, test in zip(figure.subplots(1, len(tests)), tests, strict=True):
        for method in LEADING:
            cells = {number: accuracies(results, Run(method, number, 0).name, test) for number in DEMONSTRATIONS}
            points = [(number, list(cell.values())) for number, cell in cells.items() if cell]
            if points:
                means = [statistics.mean(values) for _, values in points]
                spans = [(mean - min(v), max(v) - mean) for mean, (_, v) in zip(means, points, strict=True)]
                numbers = [number for number, _ in points]
                axes.errorbar(numbers, means, yerr=list(zip(*spans, strict=True)), marker="o", capsize=3, label=method)
        lines = (("base", "base policy", ":"), (Run("GRPO", min(DEMONSTRATIONS), 0).name, "GRPO", "--"))
        for name, label, style in lines:
            if values := accuracies(results, name, test):
                axes.axhline(statistics.mean(values.values()), color="gray", linestyle=style, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(DEMONSTRATIONS, [str(number) for number in DEMONSTRATIONS])
        axes.set(title=test, xlabel="demonstrations", ylim=(0, 100))
    figure.axes[0].set_ylabel("held-out accuracy (%)")
    figure.axes[-1].legend(frameon=False, fontsize=7)
    save_figure(figure, picture)
