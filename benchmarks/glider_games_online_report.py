"""Tables and plot of `glider_games_online.py`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from experiment import half_width, interval, plot_curves, save_figure
from glider_games_online import KINDS, SETTINGS, name_of
from rich.console import Console
from rich.table import Table

COLORS = {"hierarchical": "tab:blue", "flat": "tab:orange"}
AXES = {"score": "score, own rewards", "solved": "share solved", "purchases": "purchases"}
LEVELS = (-0.2, 0.0, 0.2)  # scores to reach
Curve = Sequence[tuple[int, Mapping[str, float]]]


def up_to(curve: Curve, key: str, steps: int) -> float:
    """Return the mean figure of the rounds complete after a number of environment steps, of the first one at least."""
    return statistics.mean(point[key] for i, (done, point) in enumerate(curve) if done <= steps or i == 0)


def latest(curve: Curve, key: str, rounds: int = 3) -> float:
    """Return the mean figure of the last rounds."""
    return statistics.mean(point[key] for _, point in curve[-rounds:])


def steps_to(curve: Curve, key: str, level: float, rounds: int = 3) -> int | None:
    """Return the environment steps after which the mean of so many successive rounds has reached a level, if ever."""
    for end in range(rounds, len(curve) + 1):
        if latest(curve[:end], key, rounds) >= level:
            return curve[end - 1][0]
    return None


def report(results: Mapping[str, Any], console: Console, title: str = "glider_games_online") -> None:
    """Print all tables, and write the plot of this title, of the seeds that are complete."""
    names = [name_of(setting, kind) for setting in SETTINGS for kind in KINDS]
    seeds = [seed for _, seed in sorted(results["seeds"].items()) if set(names) <= seed.keys()]
    if not seeds:
        console.print("no complete seed")
        return
    runs = {name: [seed[name] for seed in seeds] for name in names}
    console.print(f"{len(seeds)} seeds, 95% intervals")
    _print_held_out(runs, console)
    _print_curves(runs, console)
    plot(runs, title)


def _print_held_out(runs: Mapping[str, Any], console: Console) -> None:
    shown = [("unseen", key) for key in ("score", "solved", "purchases", "right", "rarest", "carried out")]
    shown += [("unseen, greedy", "score"), ("unseen, greedy", "solved"), ("seen", "score")]
    table = Table("", *(f"{split}: {key}" for split, key in shown), title="held-out problems")
    for name, rows in runs.items():
        before, after = ([[row[when][s].get(k) for s, k in shown] for row in rows] for when in ("before", "after"))
        table.add_row(f"before, {name}", *_intervals(before))
        table.add_row(f"after, {name}", *_intervals(after))
        table.add_row("difference", *_intervals(after, before))
    for setting in SETTINGS:
        parts = [[[r["after"][s].get(k) for s, k in shown] for r in runs[name_of(setting, kind)]] for kind in KINDS]
        table.add_row(f"{setting}: hierarchical - flat", *_intervals(*parts))
    console.print(table)


def _intervals(rows: Sequence[Sequence[Any]], others: Sequence[Sequence[Any]] | None = None) -> list[str]:
    """Return the interval over rows of each column, or of its difference from others'; - where figures are missing."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    if others is None:
        return ["-" if None in column else interval(column) for column in columns]
    pairs = zip(columns, zip(*others, strict=True), strict=True)
    return ["-" if None in (*a, *b) else interval([x - y for x, y in zip(a, b, strict=True)]) for a, b in pairs]


def _print_curves(runs: Mapping[str, Any], console: Console) -> None:
    curves = {name: [row["curve"] for row in rows] for name, rows in runs.items()}
    shortest = min(curve[-1][0] for rows in curves.values() for curve in rows)
    marks = [shortest * part // 4 for part in (1, 2, 3, 4)]
    for key in AXES:
        table = Table("", *(f"up to {mark}" for mark in marks), "last 3 rounds", title=f"training episodes: {key}")
        read = [*(partial(up_to, key=key, steps=mark) for mark in marks), partial(latest, key=key)]
        for name, rows in curves.items():
            table.add_row(name, *(interval([get(curve) for curve in rows]) for get in read))
        for setting in SETTINGS:
            pairs = list(zip(*(curves[name_of(setting, kind)] for kind in KINDS), strict=True))
            table.add_row(f"{setting}: difference", *(interval([get(a) - get(b) for a, b in pairs]) for get in read))
        console.print(table)
    for level in LEVELS:
        for name, rows in curves.items():
            console.print(f"steps to {level}, {name}: {[steps_to(curve, 'score', level) for curve in rows]}")


def plot(runs: Mapping[str, Any], title: str) -> None:
    """Plot score, solved share and purchases of the training episodes against environment steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3 * len(SETTINGS)))
    panels = figure.subplots(len(SETTINGS), len(AXES), squeeze=False, sharex=True, sharey="col")
    for row, setting in zip(panels, SETTINGS, strict=True):
        for axes, (key, label) in zip(row, AXES.items(), strict=True):
            for kind in KINDS:
                curves = [[(n, p[key]) for n, p in run["curve"]] for run in runs[name_of(setting, kind)]]
                plot_curves(axes, curves, kind, half_width, color=COLORS[kind], alpha=0.15)
            axes.set(xlabel="environment steps", ylabel=label, title=setting)
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save_figure(figure, f"{title}.png")
