"""GLIDER's trained baselines on errands, from the flat SFT of `glider_games.py`: minutes per seed on one CPU core.

    python benchmarks/glider_games_baselines.py             # seeds 2 to 6; resumes after the last complete row
    python benchmarks/glider_games_baselines.py --report    # only the tables and the plot
    python benchmarks/glider_games_baselines.py --trial ilql advantage_weight=4 100    # a trial on seed 100: its scores

NAT and ILQL learn from the 480 medium-quality episodes; DPO and ETO from pairs of these with the policy's own episodes
on the same problems; PPO from its own episodes. All take the optimiser steps of offline RL, and adapters of its rank.
Baselines that read instructions or examples (ReAct, Reflexion, SwiftSage, AgentTuning) need a pretrained model.

Runs are in `runs/glider_games`, figures in `benchmarks/results/glider_games_baselines.json`, the plot is
`docs/images/glider_games_baselines.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment import RESULTS, Step, environment, read_results, run
from glider_games import RUNS, Seed
from glider_games_baselines_report import TITLES, report
from rich.console import Console

from lit_rft._files import write_json

FILE = RESULTS / "glider_games_baselines.json"


def train(runs: Path, row: str, seed: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Train a baseline in this process, with other settings in these fields, and return its figures."""
    from glider_games_baselines_run import Settings, run_row

    return run_row(Seed(runs, seed), row, Settings(**fields))


def run_all(seeds: Sequence[int], runs: Path, console: Console) -> None:
    """Run what is missing, a process for each row of a seed."""
    from glider_games_baselines_run import Settings

    for seed in seeds:
        for row in TITLES:
            results = read_results(FILE)
            if row in results.get("seeds", {}).get(str(seed), {}):
                continue
            file = runs / f"seed{seed}" / f"{row}.json"
            command = [sys.executable, __file__, "--runs", str(runs), "--part", row, str(seed)]
            run(Step(f"seed {seed}: {row}", command, file), runs, console)
            results.setdefault("seeds", {}).setdefault(str(seed), {})[row] = json.loads(file.read_text())
            write_json(FILE, {**results, "settings": dataclasses.asdict(Settings()), **environment()})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of models and logs")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("--part", nargs=2, metavar=("ROW", "SEED"), help="one row of a seed in this process")
    parser.add_argument("--trial", nargs="+", metavar="ROW KEY=VALUE SEED", help="a row with other settings")
    options = parser.parse_args()
    if options.part:
        row, seed = options.part
        write_json(options.runs / f"seed{seed}" / f"{row}.json", train(options.runs, row, int(seed), {}))
        return
    if options.trial:
        row, *pairs, seed = options.trial
        fields = {key: json.loads(value) for key, value in (pair.split("=") for pair in pairs)}
        print(json.dumps(train(options.runs, row, int(seed), fields), indent=1))
        return
    console = Console()
    if not options.report:
        run_all(options.seeds, options.runs, console)
    report(read_results(FILE), console)


if __name__ == "__main__":
    main()
