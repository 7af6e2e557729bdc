"""Provoke faults and report what was lost: `PYTHONPATH=tools python -m faults`, or `make faults`.

Each trial runs in a separate process; `results.jsonl` in the output folder has a line for each that has ended. The
same command resumes an interrupted campaign; `--again` repeats the trials in which something was lost.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forked import import_large_packages

if TYPE_CHECKING:
    from faults.trial import Trial

KINDS = ("pickles", "records", "texts", "answers", "resumes", "disk", "surroundings", "graders", "simulators", "kills",
         "stops", "pairs", "hosts", "memory")  # fmt: skip


def import_what_runs_need() -> None:
    """Import once what takes seconds, with the library: the forked processes have it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import_large_packages()
    import torch

    torch.set_num_threads(1)
    from lit_rft.command_line import know_short_names

    know_short_names()


def read_results(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the last row of each trial; a line that a killed campaign left incomplete is dropped."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        data = data[: data.rfind(b"\n") + 1]
        path.write_bytes(data)
    rows = [json.loads(line) for line in data.splitlines()]
    return {(row["kind"], row["trial"]): row for row in rows}


def interleaved(kinds: list[list[Trial]], seed: int) -> list[Trial]:
    """Mix trials so that the first half of them has half of each kind: all are tried when a campaign is cut short."""
    places = []
    for trials in kinds:
        random.Random(seed).shuffle(trials)
        places += [((number + 0.5) / len(trials), trial) for number, trial in enumerate(trials)]
    return [trial for _, trial in sorted(places, key=lambda place: place[0])]


def table(rows: list[dict[str, Any]]) -> Any:
    """Lay out tried, survived and lost by kind."""
    from rich.table import Table

    result = Table(title="faults")
    for column in ("kind", "trials", "tried", "survived", "lost", "minutes"):
        result.add_column(column, justify="left" if column == "kind" else "right")
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    for kind in [*kinds, "all"]:
        chosen = [row for row in rows if kind in ("all", row["kind"])]
        sums: Counter[str] = Counter()
        for row in chosen:
            sums.update({key: row[key] for key in ("tried", "survived", "seconds")})
        lost = sums["tried"] - sums["survived"]
        if kind == "all":
            result.add_section()
        result.add_row(kind, *(str(n) for n in (len(chosen), sums["tried"], sums["survived"], lost)),
                       f"{sums['seconds'] / 60:.1f}")  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/faults"), help="folder of results and scratch files")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the made-up inputs")
    parser.add_argument("--short", action="store_true", help="a few trials of each kind, for continuous integration")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--match", default="", help="run only trials whose name contains this")
    parser.add_argument("--again", action="store_true", help="repeat the trials in which something was lost")
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    rows = read_results(output / "results.jsonl")
    import_what_runs_need()
    from rich.console import Console

    from faults.trial import execute

    shared = output / "shared"
    modules = [importlib.import_module(f"faults.{kind}") for kind in options.only]
    trials = [list(module.trials(shared, options.seed, options.short)) for module in modules]
    trials = [trial for trial in interleaved(trials, options.seed) if options.match in trial.name]

    def is_done(row: dict[str, Any] | None) -> bool:
        return row is not None and not (options.again and row["survived"] < row["tried"])

    waiting = [trial for trial in trials if not is_done(rows.get((trial.kind, trial.name)))]
    begun = time.monotonic()
    with (output / "results.jsonl").open("a", encoding="utf-8") as results:
        for number, trial in enumerate(waiting, 1):
            folder = output / "trials" / trial.kind / trial.name.replace(" ", "_")
            shutil.rmtree(folder, ignore_errors=True)
            row = execute(trial, folder) | {"seed": options.seed, "at": time.strftime("%Y-%m-%d %H:%M:%S")}
            rows[trial.kind, trial.name] = row
            results.write(json.dumps(row) + "\n")
            results.flush()
            lost = row["tried"] - row["survived"]
            if not lost:
                shutil.rmtree(folder, ignore_errors=True)
            left = (time.monotonic() - begun) / number * (len(waiting) - number) / 60
            print(f"{number}/{len(waiting)} {'LOST' if lost else 'ok'} {trial.kind}: {trial.name}, "
                  f"{row['seconds']:.0f} s, {row['note']}; {left:.0f} minutes left", flush=True)  # fmt: skip
    wanted = {(trial.kind, trial.name) for trial in trials}
    chosen = [row for key, row in rows.items() if key in wanted]
    Console().print(table(chosen))
    sys.exit(any(row["survived"] < row["tried"] for row in chosen))


if __name__ == "__main__":
    main()
