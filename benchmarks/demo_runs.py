"""`make demo` with several seeds: gain and spread over the runs (docs/results.md). Resumable, also on another machine.

python benchmarks/demo_runs.py                # eight runs, one after the other
python benchmarks/demo_runs.py --seeds 0 3    # some of them
python benchmarks/demo_runs.py --report       # only the runs that have finished
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import RESULTS, Step, read_results, run, save_figure
from rich.console import Console

from lit_rft._files import write_json
from lit_rft.demo.comparison import TOTAL
from lit_rft.demo.report import markdown_table, task_label

NAME = "demo"
Runs = Mapping[int, Mapping[str, Any]]  # seed -> contents of its summary.json


def step(seed: int, folder: Path, more: Sequence[str]) -> Step:
    """Make the step of one run."""
    place = folder / f"seed-{seed}"
    command = [sys.executable, "-m", "lit_rft.demo", "--seed", str(seed), "--folder", str(place), *more]
    return Step(f"demo: seed {seed}", command, place / "summary.json")


def read_runs(folder: Path) -> dict[int, dict[str, Any]]:
    """Read the summaries of the runs that have finished, in the folder and in the results so far."""
    contents: list[dict[str, Any]] = read_results(RESULTS / f"{NAME}.json").get("runs", [])
    contents = contents + [json.loads(path.read_text()) for path in folder.glob("seed-*/summary.json")]
    return {summary["seed"]: summary for summary in sorted(contents, key=lambda summary: summary["seed"])}


def runs_table(runs: Runs) -> str:
    """Format a row per run, and their mean, as Markdown."""
    rows = [["run", "before", "after", "gain (95% interval)", "minutes", "CPU minutes"]]
    for seed, summary in runs.items():
        total = summary["results"][TOTAL]
        low, high = (100 * end for end in total["gain_interval"])
        minutes = [f"{sum(summary[name].values()) / 60:.1f}" for name in ("seconds", "cpu_seconds")]
        gain = f"{100 * total['gain']:+.0f} ({low:+.0f} to {high:+.0f})"
        rows.append([f"seed {seed}", f"{total['before']:.0%}", f"{total['after']:.0%}", gain, *minutes])
    means = [
        statistics.mean(values) for values in ([row[name] for row in _totals(runs)] for name in ("before", "after"))
    ]
    gains = [100 * row["gain"] for row in _totals(runs)]
    spread = f" ± {statistics.stdev(gains):.0f}" if len(gains) > 1 else ""
    rows.append(["mean", f"{means[0]:.0%}", f"{means[1]:.0%}", f"{statistics.mean(gains):+.0f}{spread}", "", ""])
    return markdown_table(rows)


def tasks_table(runs: Runs) -> str:
    """Format the success of each task over all runs, as Markdown."""
    rows = [["task", "games", "before", "after"]]
    for task in next(iter(runs.values()))["results"]:
        parts = [summary["results"][task] for summary in runs.values()]
        games = sum(part["games"] for part in parts)
        shares = [sum(part[name] * part["games"] for part in parts) / games for name in ("before", "after")]
        rows.append([task_label(task), str(games), *(f"{share:.0%}" for share in shares)])
    return markdown_table(rows)


def shortfalls(runs: Runs) -> list[str]:
    """Return what the runs miss of their aims: each gain's interval above 15 points, and a mean gain above 35."""
    low = {seed: 100 * summary["results"][TOTAL]["gain_interval"][0] for seed, summary in runs.items()}
    missed = [f"seed {seed}: the gain's interval begins at {end:.0f} points" for seed, end in low.items() if end <= 15]
    mean = 100 * statistics.mean(row["gain"] for row in _totals(runs))
    return [*missed, *([f"the mean gain is {mean:.0f} points"] if mean <= 35 else [])]


def _totals(runs: Runs) -> list[Mapping[str, Any]]:
    return [summary["results"][TOTAL] for summary in runs.values()]


def plot(runs: Runs) -> None:
    """Draw the success rate of each run before and after, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 0.7 + 0.4 * len(runs)))
    for name, colour in (("before", "#9aa5b1"), ("after", "#0b7285")):
        for place, total in enumerate(_totals(runs)):
            low, high = (100 * end for end in total[f"{name}_interval"])
            axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
        shares = [100 * total[name] for total in _totals(runs)]
        axes.plot(shares, range(len(runs)), "o", color=colour, label=f"{name} training")
    axes.set_yticks(range(len(runs)), [f"seed {seed}" for seed in runs])
    axes.set(xlim=(-2, 100), xlabel="held-out games solved (%), 95% intervals")
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, "demo_runs.png")
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing runs, then write results, figure and tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--folder", type=Path, default=Path("runs/demo_runs"))
    parser.add_argument("--report", action="store_true", help="make no run")
    options, more = parser.parse_known_args(arguments)
    console = Console()
    for seed in set() if options.report else sorted(set(options.seeds) - set(read_runs(options.folder))):
        run(step(seed, options.folder, more), options.folder, console)
    runs = read_runs(options.folder)
    if not runs:
        raise SystemExit(f"expected finished runs in {options.folder}, got none")
    write_json(RESULTS / f"{NAME}.json", {"runs": list(runs.values()), "shortfalls": shortfalls(runs)})
    plot(runs)
    print(runs_table(runs), tasks_table(runs), "\n".join(shortfalls(runs)), sep="\n\n")


if __name__ == "__main__":
    main()
