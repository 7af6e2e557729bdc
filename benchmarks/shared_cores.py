"""Time a training step whose OpenMP threads wait, on idle cores and on busy ones (docs/performance.md).

    python benchmarks/shared_cores.py

The demo's training, in a separate process for each measurement: on idle cores, and beside as many processes as there
are cores, each of which occupies one. Writes `benchmarks/results/shared_cores.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from experiment import RESULTS, environment, lit_rft
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lit_rft._files import write_json

CONFIGS = ("glider/alfworld/sft.yaml", "glider/alfworld/flat_sft.yaml", "glider/alfworld/demo.yaml")
VARIANTS: dict[str, dict[str, str]] = {
    "the defaults of libgomp": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},  # as the demo sets it
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
LOADS = {"idle cores": 0, "busy cores": os.cpu_count() or 1}  # other processes


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep cores busy with processes that compute without pause."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def seconds_per_step(variables: Mapping[str, str], steps: int) -> float:
    """Train for some optimiser steps in a separate process, and return the seconds of each."""
    names = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"}
    variables = {name: value for name, value in os.environ.items() if name not in names} | variables
    with tempfile.TemporaryDirectory() as folder:
        keys = {"trainer.default_root_dir": folder, "trainer.max_steps": steps}
        command = lit_rft("fit", CONFIGS, keys)
        subprocess.run(command, env=variables, check=True, capture_output=True)
        return float(json.loads((Path(folder) / "costs_fit.json").read_text())["seconds"]) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measured: dict[str, dict[str, list[float]]] = {name: {load: [] for load in LOADS} for name in VARIANTS}
    plan = list(itertools.product(range(options.rounds), LOADS, VARIANTS))
    for _, load, name in track(plan, "measuring"):
        with busy(LOADS[load]):
            measured[name][load].append(round(seconds_per_step(VARIANTS[name], options.steps), 3))
    write_json(RESULTS / "shared_cores.json", {"steps": options.steps, "seconds_per_step": measured, **environment()})
    table = Table("seconds per step", *LOADS, box=box.MARKDOWN)
    for name, loads in measured.items():
        table.add_row(
            name, *(f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" for values in loads.values())
        )
    Console().print(table)


if __name__ == "__main__":
    main()
