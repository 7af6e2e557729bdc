"""The comparison that GLIDER is known for, by one command: every method on the same games, data and backbone.

    python benchmarks/talk_table.py --scale tiny                          # minutes: goes through every command
    python benchmarks/talk_table.py --scale small --seeds 0 1 2           # days on two cores
    python benchmarks/talk_table.py --scale small --rows sft glider --environments alfworld
    python benchmarks/talk_table.py --scale small --report                # the table of what is there

Every step is a `lit-rft` command; completed ones are skipped, an interrupted one resumes, also after `kill -9`.
Runs and logs are in `runs/talk/<scale>`, figures in `benchmarks/results/talk_<scale>.json`. `--scale paper` has the
papers' models, data sizes and settings for a node of 8 GPUs; `--dry-run` prints the commands.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiment import RESULTS, ROOT, Step, environment, read_results, run, times, write_json_lines
from rich.console import Console
from talk_place import GAMES, Place
from talk_report import costs, outcomes, report
from talk_rows import ROWS

from lit_rft._files import write_json
from lit_rft.problems import generate_problems


def steps(place: Place, row: str) -> list[Step]:
    return list(ROWS[row].steps(place))


def places(options: argparse.Namespace, name: str) -> Iterator[Place]:
    runs = options.runs / options.scale
    extra = [f"--model.init_args.policy.model={runs / 'model'}"] if options.scale == "tiny" else []
    for seed in options.seeds:
        home = runs / f"{name}-seed{seed}"
        general = options.general or runs / "general.jsonl"
        yield Place(GAMES[name], options.scale, seed, home, general, (*extra, *options.extra))


def make_general_data(options: argparse.Namespace) -> None:
    """Write conversations that are no episodes: generated word problems with worked answers."""
    file = options.runs / options.scale / "general.jsonl"
    if options.general or file.exists():
        return
    problems = generate_problems("gsm_symbolic", 20 if options.scale == "tiny" else 2000)
    rows = [[*p.prompt, {"role": "assistant", "content": p.traces[0]}] for p in problems]
    write_json_lines(file, ({"messages": messages} for messages in rows))


def make_tiny_model(options: argparse.Namespace) -> None:
    from lit_rft.testing import save_tiny_model

    folder = options.runs / "tiny" / "model"
    if not (folder / "tokenizer.json").exists():
        save_tiny_model(folder)


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Collect the figures so far, beside those of earlier runs."""
    file = result_file(options)
    known = read_results(file)
    episodes, taken = known.get("episodes", {}), known.get("costs", {})
    seconds = times(options.runs / options.scale, known)
    by_step = {time["step"]: time["seconds"] for time in seconds}
    for name, row in itertools.product(GAMES, ROWS):
        for place in places(options, name):
            if played := outcomes(place, row):
                episodes.setdefault(name, {}).setdefault(row, {})[str(place.seed)] = played
                taken.setdefault(name, {}).setdefault(row, {})[str(place.seed)] = costs(row, steps(place, row), by_step)
    return {"scale": options.scale, "episodes": episodes, "costs": taken, "seconds": seconds, **environment()}


def result_file(options: argparse.Namespace) -> Path:
    folder: Path = options.results
    return folder / f"talk_{options.scale}.json"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--scale", choices=("tiny", "small", "paper"), required=True)
    parser.add_argument("--environments", nargs="+", choices=list(GAMES), default=list(GAMES))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--general", type=Path, help="instruction data of AgentTuning (generated problems)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "talk")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("extra", nargs="*", help="more arguments for every lit-rft command (after --)")
    options = parser.parse_args(arguments)
    console = Console()
    console.width = max(console.width, 220)  # of the table
    planned = [(place, row) for name in options.environments for place in places(options, name) for row in options.rows]
    if options.dry_run:
        for command in dict.fromkeys(shlex.join(step.command) for place, row in planned for step in steps(place, row)):
            print(command)
        return
    if not options.report:
        make_general_data(options)
    if options.scale == "tiny":
        make_tiny_model(options)
    for number, (place, row) in enumerate(planned if not options.report else (), 1):
        console.rule(f"{number} of {len(planned)}: {place.game.name}, seed {place.seed}, {ROWS[row].title}")
        for step in ROWS[row].steps(place):
            run(step, options.runs / options.scale, console)
        write_json(result_file(options), collect(options))
    report(read_results(result_file(options)), console)


if __name__ == "__main__":
    main()
