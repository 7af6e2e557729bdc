"""GiGPO and HAE against plain episode advantages, with a small model trained from scratch: minutes per run on one CPU
core.

    python benchmarks/turn_credit.py                                       # all runs; resumes an interrupted one
    python benchmarks/turn_credit.py --subjects errands --seeds 0          # some of them
    python benchmarks/turn_credit.py --report                              # only the tables and the plot

The same hierarchical agent plays a street of shops (errands) or generated households (synthetic ALFWorld, which is not
ALFWorld's own). For each seed: SFT on stored episodes (in households one for all seeds), then from there each method,
for the same number of episodes and optimiser steps, at the same learning rate: GRPO, whose advantage is that of an
episode; GiGPO, which adds that of each decision; HAE, by PPO with untrained value heads. Each policy plays held-out
problems at temperature 1 and greedily.

Runs are in `runs/turn_credit`, figures in `benchmarks/results/turn_credit.json`, the plot is
`docs/images/turn_credit.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import (
    RESULTS,
    ROOT,
    Step,
    environment,
    interval,
    plot_curves,
    read_results,
    run,
    save_figure,
)
from rich.console import Console
from rich.table import Table

from lit_rft._files import write_json

RUNS, FILE = ROOT / "runs" / "turn_credit", RESULTS / "turn_credit.json"
NAMES, METHODS = ("errands", "households"), ("SFT", "GRPO", "GiGPO", "HAE")
PLAIN, PARTS = "GRPO", 5  # the method to compare with; points of a learning curve


def folder_of(runs: Path, subject: str, seed: int) -> Path:
    return runs / subject / f"seed{seed}"


def run_all(
    subjects: Sequence[str], seeds: Sequence[int], methods: Sequence[str], runs: Path, console: Console
) -> None:
    """Run what is missing, a process for each subject, seed and method."""
    known = read_results(FILE).get("runs", {})
    for subject in subjects:
        for seed in seeds:
            for method in methods:
                if str(seed) in known.get(subject, {}).get(method, {}):
                    continue
                command = [sys.executable, __file__, "--runs", str(runs), "--run", subject, str(seed), method]
                result = folder_of(runs, subject, seed) / f"{method}.json"
                run(Step(f"{subject} seed {seed} {method}", command, result), runs, console)
                write_json(FILE, collect_results(runs))


def collect_results(runs: Path) -> dict[str, Any]:
    """Return the finished runs, of this machine and of the results so far."""
    from turn_credit_run import SUBJECTS

    rows: dict[str, Any] = read_results(FILE).get("runs", {})
    for subject in NAMES:
        for method in METHODS:
            for path in sorted((runs / subject).glob(f"seed*/{method}.json")):
                seeds = rows.setdefault(subject, {}).setdefault(method, {})
                seeds[path.parent.name.removeprefix("seed")] = json.loads(path.read_text())
    settings = {name: dataclasses.asdict(subject) for name, subject in SUBJECTS.items()}
    return {"runs": rows, "settings": settings, **environment()}


def learning_curve(row: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return the mean score of the training episodes of each part of a run, by the number of episodes so far."""
    points, size = row["curve"], max(1, len(row["curve"]) // PARTS)
    blocks = [points[i : i + size] for i in range(0, len(points) - size + 1, size)]
    return [(block[-1][0], statistics.mean(point[1] for point in block)) for block in blocks]


def held_out_score(row: Mapping[str, Any], mode: str) -> float:
    score: float = row["scores"][mode]["score"]
    return score


def curve_point(row: Mapping[str, Any], place: int) -> float:
    return learning_curve(row)[place][1]


def paired(methods: Mapping[str, Any], value: Callable[[Mapping[str, Any]], float], method: str) -> str:
    """Return the mean difference of a figure from the plain method's, over the seeds of both, and its interval."""
    plain, other = methods.get(PLAIN, {}), methods[method]
    seeds = [seed for seed in sorted(other) if seed in plain]
    return interval([value(other[seed]) - value(plain[seed]) for seed in seeds]) if seeds else ""


def report(results: Mapping[str, Any], console: Console) -> None:
    """Print the scores of all methods, their differences from the plain one and the learning curves; draw the plot."""
    for subject, methods in results["runs"].items():
        _report_scores(subject, methods, console)
        _report_curves(subject, methods, console)
    plot(results["runs"])


def _report_scores(subject: str, methods: Mapping[str, Any], console: Console) -> None:
    table = Table(title=f"{subject}: held-out score, mean and 95% interval over seeds")
    for column in ("method", "seeds", "sampled", "minus GRPO", "greedy", "minus GRPO", "CPU minutes"):
        table.add_column(column)
    for method, rows in methods.items():
        cells = []
        for mode in ("sampled", "greedy"):
            score = functools.partial(held_out_score, mode=mode)
            cells += [interval([score(row) for row in rows.values()])]
            cells += ["" if method == PLAIN else paired(methods, score, method)]
        minutes = interval([sum(row["minutes"].values()) for row in rows.values()], 1)
        table.add_row(method, str(len(rows)), *cells, minutes)
    console.print(table)


def _report_curves(subject: str, methods: Mapping[str, Any], console: Console) -> None:
    curves = {name: [learning_curve(row) for row in rows.values()] for name, rows in methods.items() if name != "SFT"}
    if not curves:
        return
    table = Table(title=f"{subject}: score of the training episodes up to each number of them")
    table.add_column("method")
    for episodes, _ in next(iter(curves.values()))[0]:
        table.add_column(str(episodes))
    for method, lines in curves.items():
        table.add_row(method, *(interval([point[1] for point in points]) for points in zip(*lines, strict=True)))
    for method in curves:
        if method != PLAIN and PLAIN in curves:
            points = [functools.partial(curve_point, place=place) for place in range(len(curves[method][0]))]
            table.add_row(f"{method} - {PLAIN}", *(paired(methods, point, method) for point in points))
    console.print(table)


def plot(runs: Mapping[str, Any]) -> None:
    """Plot the score of the training episodes against their number, by seed and on average; one panel per subject."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(runs), 3.4))
    axes_row = figure.subplots(1, len(runs), squeeze=False)[0]
    for axes, (subject, methods) in zip(axes_row, runs.items(), strict=True):
        for method, rows in methods.items():
            if method == "SFT":
                level = statistics.mean(row["scores"]["sampled"]["score"] for row in rows.values())
                axes.axhline(level, color="gray", linestyle=":", label="SFT, held out")
            else:
                curves = [learning_curve(row) for row in rows.values()]
                plot_curves(axes, curves, method, lambda values: 0.0)
                color = axes.lines[-1].get_color()
                for points in curves:
                    axes.plot(*zip(*points, strict=True), color=color, linewidth=0.8, alpha=0.4)
        axes.set(title=subject, xlabel="episodes", ylabel="score of training episodes")
    axes_row[-1].legend(frameon=False, fontsize=8)
    save_figure(figure, "turn_credit.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--subjects", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of models and logs")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("--run", nargs=3, metavar=("SUBJECT", "SEED", "METHOD"), help="one run in this process")
    options = parser.parse_args()
    if options.run:
        from turn_credit_run import SUBJECTS, Trial

        subject, seed, method = options.run
        folder = folder_of(options.runs, subject, int(seed))
        write_json(folder / f"{method}.json", Trial(folder, SUBJECTS[subject], int(seed)).run(method))
        return
    console = Console()
    if not options.report:
        run_all(options.subjects, options.seeds, options.methods, options.runs, console)
    report(read_results(FILE), console)


if __name__ == "__main__":
    main()
