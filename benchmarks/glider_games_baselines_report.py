"""Tables and plot of `glider_games_baselines.py`, beside the policies of `glider_games.py` of the same seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiment import RESULTS, half_width, interval, read_results, save_figure
from glider_games_report import COLORS, difference, scores
from rich.console import Console
from rich.table import Table

TITLES = {"nat": "+ NAT", "dpo": "+ DPO", "eto": "+ ETO", "ilql": "+ ILQL", "ppo": "+ PPO"}
POLICIES = ("SFT", "+ more SFT", "+ SFT on the best quarter", "+ offline RL, lambda-returns")  # of glider_games.py
GLIDER = ("hierarchical", POLICIES[-1])
MODES = {"sampled": "temperature 1", "greedy": "greedy"}
Rows = Mapping[tuple[str, str], Mapping[str, Sequence[float]]]


def all_scores(results: Mapping[str, Any], games: Mapping[str, Any]) -> Rows:
    """Return the mean score of each seed, by agent and policy, and by mode of sampling; seeds in the same order.

    Args:
        results: of the baselines.
        games: of `glider_games.py`.
    """
    names = sorted(name for name, seed in results["seeds"].items() if TITLES.keys() <= seed.keys())
    names = [name for name in names if name in games["seeds"]]
    seeds = [results["seeds"][name] for name in names]
    others = {"seeds": {name: games["seeds"][name] for name in names}}
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    for kind in ("flat", "hierarchical"):
        rows |= {(kind, p): {mode: scores(others, kind, p, mode) for mode in MODES} for p in POLICIES}
        if kind == "flat":
            for row, title in TITLES.items():
                rows[kind, title] = {mode: [seed[row]["scores"][mode]["mean"] for seed in seeds] for mode in MODES}
    return rows


def report(results: Mapping[str, Any], console: Console) -> None:
    """Print the tables, and write the plot, of the seeds that have all rows."""
    rows = all_scores(results, read_results(RESULTS / "glider_games.json"))
    number = len(rows["flat", "SFT"]["greedy"])
    if not number:
        console.print("no complete seed")
        return
    table = Table(title=f"mean score of three lengths, 95% intervals over {number} seeds")
    columns = ("temperature 1", "- flat SFT", "greedy", "- flat SFT")
    for column in ("agent", "policy", *columns, "environment steps", "CPU minutes"):
        table.add_column(column)
    for (kind, policy), values in rows.items():
        cells = []
        for mode in MODES:
            cells += [interval(values[mode]), difference(values[mode], rows["flat", "SFT"][mode])]
        table.add_row(kind, policy, *cells, *_costs(results, policy))
    console.print(table)
    table = Table("GLIDER (hierarchical, lambda-returns) minus", *MODES.values(), title="by seed")
    for (kind, policy), values in rows.items():
        if (kind, policy) != GLIDER:
            table.add_row(f"{kind} {policy}", *(difference(rows[GLIDER][mode], values[mode]) for mode in MODES))
    console.print(table)
    plot(rows)


def _costs(results: Mapping[str, Any], policy: str) -> tuple[str, str]:
    """Return environment steps of training, and minutes without those of SFT."""
    row = next((row for row, title in TITLES.items() if title == policy), None)
    if row is None:
        return "", ""
    parts = [seed[row] for seed in results["seeds"].values() if row in seed]
    minutes = [sum(v for name, v in part["minutes"].items() if name != "flat_sft") for part in parts]
    return f"{statistics.mean(part['env_steps'] for part in parts):,.0f}", f"{statistics.mean(minutes):.1f}"


def plot(rows: Rows) -> None:
    """Plot the scores of all policies, with intervals and the seeds' points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (mode, title) in zip(panels, MODES.items(), strict=True):
        for place, ((kind, _), values) in enumerate(rows.items()):
            column = values[mode]
            axes.barh(
                place, statistics.mean(column), xerr=half_width(column), capsize=2, color=COLORS[kind], alpha=0.75
            )
            axes.plot(column, [place] * len(column), ".", color="black", markersize=3)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(title=title, xlabel="mean score of three lengths", xlim=(-0.1, 1))
    panels[0].set_yticks(range(len(rows)), [f"{kind}: {policy.removeprefix('+ ')}" for kind, policy in rows])
    panels[0].invert_yaxis()
    figure.tight_layout()
    save_figure(figure, "glider_games_baselines.png")
