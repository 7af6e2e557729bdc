"""Combine the figures of the steps: `benchmarks/results/gpu.json`, and tables for the console.

python benchmarks/gpu/collect.py FOLDER [FOLDER...]        # folders written by run.sh; later ones take precedence

Steps that are in none of the folders keep their figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kit import BENCHMARKS  # first: it adds the shared modules to the path

from experiment import read_results  # isort: skip
from peers import RESULTS
from rich.console import Console
from rich.markup import escape
from rich.table import Table

STEPS = ("check", "tests", "train", "rollout", "grpo", "learn")


def collect(folders: list[Path]) -> dict[str, Any]:
    """Return step -> its figures; learning from few demonstrations is a step of its own."""
    results: dict[str, Any] = {}
    for folder in folders:
        for step in STEPS:
            if figures := read_results(folder / f"{step}.json"):
                few = figures.get("settings", {}).get("demonstrations")
                results[f"{step}, {few} demonstrations" if few else step] = figures
    return results


def report(results: dict[str, Any], console: Console) -> None:
    for step, figures in results.items():
        items = figures.get("items", {}) | figures.get("running", {})  # of an interrupted step
        columns = list(dict.fromkeys(key for item in items.values() for key, value in item.items() if _is_plain(value)))
        cut = "" if figures["complete"] else ", cut at its limit"
        table = Table(title=f"{step}: {figures['device']['name']}, torch {figures['versions']['torch']}{cut}")
        table.add_column("")
        for column in columns:
            table.add_column(column.replace("_", " "), justify="right")
        for name, item in items.items():
            table.add_row(escape(name), *(_cell(item.get(column, "")) for column in columns))
        console.print(table)


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value)[:60])


def main() -> None:
    from lit_rft._files import write_json

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--no-file", action="store_true", help="tables only")
    options = parser.parse_args()
    results = collect(options.folders)
    if not results:
        raise SystemExit(f"no figures in {', '.join(map(str, options.folders))}")
    if not options.no_file:
        write_json(RESULTS / "gpu.json", read_results(RESULTS / "gpu.json") | results)
        print(f"written: {(RESULTS / 'gpu.json').relative_to(BENCHMARKS.parent)}")
    report(results, Console(width=180))


if __name__ == "__main__":
    main()
