"""Tables and plot of `glider_games.py`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiment import half_width, interval, plot_curves, save_figure
from rich.console import Console
from rich.table import Table

from lit_rft.envs.games import errands

KINDS = ("hierarchical", "flat")
POLICIES = (
    "SFT",
    "+ more SFT",
    "+ SFT on the best quarter",
    "+ offline RL",
    "+ offline RL, lambda-returns",
    "+ offline RL, matched",
    "+ offline RL with Q",
    "+ offline RL with Q, matched",
    "offline RL without SFT",
    "+ offline RL, matched, temperature 0.03",
    "+ offline RL, matched, discount 0.9",
    "+ offline RL, matched, expectile 0.6",
)
RL = POLICIES[3:6]  # each is compared with the others
LATER = {  # part -> label of its diagnostics
    "returns": ", lambda-returns", "matched": ", matched", "ablations": " with Q", "matched_q": " with Q, matched",
}  # fmt: skip
ABLATIONS = {  # label in the figure -> policy; the last three are SFT, then offline RL
    "SFT only": "SFT",
    "offline RL only": "offline RL without SFT",
    "both, by V": "+ offline RL, matched",
    "both, by Q": "+ offline RL with Q, matched",
    "both, lambda-\nreturns": "+ offline RL, lambda-returns",
}
FLOOR = -1.2  # lowest score in the figure of the stages
COLORS = {"hierarchical": "tab:blue", "flat": "tab:orange"}


def scores(results: Mapping[str, Any], kind: str, policy: str, mode: str, task: str = "mean") -> list[float]:
    """Return the score of each seed that has it."""
    seeds = results["seeds"].values()
    parts = [
        {
            **seed[kind]["scores"],
            **{name: figures for part in (*LATER, "isolated") for name, figures in _later(seed, part, kind)},
        }
        for seed in seeds
    ]
    return [part[policy][mode][task] for part in parts if policy in part]


def _later(seed: Mapping[str, Any], part: str, kind: str) -> Iterable[tuple[str, Any]]:
    return seed.get(part, {}).get("scores", {}).get(kind, {}).items()


def difference(a: Sequence[float], b: Sequence[float]) -> str:
    """Return the mean of the seeds' differences with Student's interval."""
    return interval([x - y for x, y in zip(a, b, strict=True)])


def report(results: Mapping[str, Any], console: Console) -> None:
    """Print all tables, and write the plot, of the seeds that have both kinds of agents."""
    seeds = {name: seed for name, seed in results["seeds"].items() if {"hierarchical", "flat"} <= seed.keys()}
    results = {**results, "seeds": seeds}
    _print_offline(results, console)
    _print_differences(results, console)
    _print_lengths(results, console)
    _print_diagnostics(results, console)
    _print_online(results, console)
    plot(results)
    plot_ablations(results)


def _print_offline(results: Mapping[str, Any], console: Console) -> None:
    tasks = _tasks(results)
    table = Table(title=f"mean score at temperature 1 (greedy), 95% interval over {len(results['seeds'])} seeds")
    for column in ("agent", "policy", *tasks, "mean", "mean, greedy"):
        table.add_column(column)
    for kind in KINDS:
        for policy in POLICIES:
            if scores(results, kind, policy, "sampled"):
                cells = [interval(scores(results, kind, policy, "sampled", task)) for task in (*tasks, "mean")]
                table.add_row(kind, policy, *cells, interval(scores(results, kind, policy, "greedy")))
    medium = [seed["flat"]["medium"] for seed in results["seeds"].values()]
    means = [statistics.mean(part[task] for part in medium) for task in (*tasks, "mean")]
    table.add_row("", "medium player", *(f"{value:.3f}" for value in means))
    optima = [_optimum(task) for task in tasks]
    table.add_row("", "optimum", *(f"{value:.3f}" for value in (*optima, statistics.mean(optima))))
    console.print(table)


def _print_differences(results: Mapping[str, Any], console: Console) -> None:
    table = Table(title="difference of mean scores, by seed (95% interval)")
    for column in ("", "sampled", "greedy"):
        table.add_column(column)
    pairs = [((kind, rl), (kind, policy)) for kind in KINDS for rl in RL for policy in POLICIES if policy != rl]
    pairs += [(("hierarchical", policy), ("flat", policy)) for policy in POLICIES]
    pairs += [(("hierarchical", "SFT"), ("flat", "+ more SFT"))]  # two levels read more tokens in a step
    for a, b in pairs:
        values = [(scores(results, *a, mode), scores(results, *b, mode)) for mode in ("sampled", "greedy")]
        if all(len(x) == len(y) > 1 for x, y in values):
            table.add_row(f"{a[0]} {a[1]} - {b[0]} {b[1]}", *(difference(x, y) for x, y in values))
    console.print(table)


def _print_lengths(results: Mapping[str, Any], console: Console) -> None:
    tasks = _tasks(results)
    table = Table("hierarchical - flat", "", *tasks, title="difference by length of the list, by seed (95% interval)")
    for policy in POLICIES:
        for mode in ("sampled", "greedy"):
            pairs = [[scores(results, kind, policy, mode, task) for kind in KINDS] for task in tasks]
            if all(len(a) == len(b) > 1 for a, b in pairs):
                table.add_row(policy, mode, *(difference(a, b) for a, b in pairs))
    console.print(table)


def _print_diagnostics(results: Mapping[str, Any], console: Console) -> None:
    for kind in KINDS:
        parts = [seed[kind]["diagnostics"] for seed in results["seeds"].values()]
        later = {
            label: [seed[part]["diagnostics"][kind] for seed in results["seeds"].values() if part in seed]
            for part, label in LATER.items()
        }
        for label, rows in {"": parts, **later}.items():
            for name in rows[0] if rows else ():
                console.print(f"{kind}{label}: {name} {interval([row[name] for row in rows])}")


def _print_online(results: Mapping[str, Any], console: Console) -> None:
    parts = [seed["online"] for seed in results["seeds"].values() if "online" in seed]
    for name in COLORS if parts else ():
        figures = {split: interval([part[name][split] for part in parts]) for split in ("unseen", "seen")}
        steps = statistics.mean(part[name]["curve"][-1][0] for part in parts)
        console.print(f"online, {name}: {figures}, after {steps:.0f} environment steps")


def _tasks(results: Mapping[str, Any]) -> list[str]:
    medium = next(iter(results["seeds"].values()))["flat"]["medium"]
    return [task for task in medium if task != "mean"]


def _optimum(task: str) -> float:
    """Return the optimum of the seen customers whose lists have this length."""
    return errands.optimal_return([name for name in errands.CUSTOMERS if f"{len(errands.LISTS[name])} items" == task])


def plot(results: Mapping[str, Any]) -> None:
    """Plot scores against the length of the lists, and online scores against environment steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    tasks = _tasks(results)
    lengths = [int(task.split()[0]) for task in tasks]
    for kind in KINDS:
        for policy, style in (("SFT", ":"), ("+ offline RL, lambda-returns", "-")):
            columns = [scores(results, kind, policy, "sampled", task) for task in tasks]
            means, widths = [statistics.mean(c) for c in columns], [half_width(c) for c in columns]
            label = f"{kind}, {policy.removeprefix('+ ')}"
            left.errorbar(lengths, means, widths, linestyle=style, color=COLORS[kind], capsize=3, label=label)
    left.plot(lengths, [_optimum(task) for task in tasks], color="black", linewidth=0.8, label="optimum")
    left.set(xlabel="items of a list", ylabel="score", xticks=lengths, title="offline, seen customers")
    left.legend(frameon=False, fontsize=7)
    parts = [seed["online"] for seed in results["seeds"].values() if "online" in seed]
    for name, color in COLORS.items() if parts else ():
        plot_curves(right, [part[name]["curve"] for part in parts], name, half_width, color=color, alpha=0.15)
    right.set(xlabel="environment steps", ylabel="score of the episodes played", title="online, unseen customers")
    right.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    save_figure(figure, "glider_games.png")


def plot_ablations(results: Mapping[str, Any]) -> None:
    """Plot the mean score with and without each stage, hierarchical and flat, at temperature 1 and greedily."""
    from matplotlib.figure import Figure

    ablations = {label: name for label, name in ABLATIONS.items() if scores(results, "flat", name, "sampled")}
    figure = Figure(figsize=(10, 3.6))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (mode, title) in zip(panels, {"sampled": "temperature 1", "greedy": "greedy"}.items(), strict=True):
        for place, kind in enumerate(KINDS):
            columns = [scores(results, kind, name, mode) for name in ablations.values()]
            at = [position + 0.36 * place - 0.18 for position in range(len(columns))]
            widths = [half_width(column) for column in columns]
            axes.bar(
                at, [statistics.mean(column) for column in columns], 0.34, yerr=widths, capsize=3, label=kind,
                color=COLORS[kind], alpha=0.75,
            )  # fmt: skip
            for position, column in zip(at, columns, strict=True):
                axes.plot([position] * len(column), column, ".", color="black", markersize=3)
                if statistics.mean(column) < FLOOR:  # bars of the worst policies would dwarf the others
                    axes.text(position, FLOOR + 0.08, f"{statistics.mean(column):.1f}", ha="center", fontsize=8)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axhline(_optimum_of_all(results), color="tab:green", linestyle="--", linewidth=0.8, label="optimum")
        axes.set_xticks(range(len(ablations)), list(ablations), fontsize=8)
        axes.set(title=title, ylim=(FLOOR, 1))
    panels[0].set(ylabel="mean score of three lengths")
    panels[1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save_figure(figure, "glider_ablations.png")


def _optimum_of_all(results: Mapping[str, Any]) -> float:
    return statistics.mean(map(_optimum, _tasks(results)))
