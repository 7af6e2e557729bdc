"""The comparison that GLIDER is known for, by one command: every method on the same games, data and backbone.

    python benchmarks/talk_table.py --scale tiny                          # minutes: goes through every command
    python benchmarks/talk_table.py --scale small --seeds 0 1 2           # days on two cores
    python benchmarks/talk_table.py --scale small --rows sft glider --environments alfworld
    python benchmarks/talk_table.py --scale small --report                # the table of what is there

Every step is a `lit-rft` command; completed ones are skipped, an interrupted one resumes. Runs and logs are in
`runs/talk/<scale>`, figures in `benchmarks/results/talk_<scale>.json`. `--scale paper` has the papers' models, data
sizes and settings for a node of 8 GPUs; `--dry-run` prints the commands.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiment import RESULTS, ROOT, Step, environment, read_results, run, times
from rich.console import Console
from rich.table import Table
from talk_rows import GAMES, ROWS, Place

from lit_rft._files import replacing, write_json
from lit_rft.episodes import Episode, read_episodes
from lit_rft.problems import generate_problems

KINDS = ("seen", "unseen")


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
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))


def make_tiny_model(options: argparse.Namespace) -> None:
    from lit_rft.testing import save_tiny_model

    folder = options.runs / "tiny" / "model"
    if not (folder / "tokenizer.json").exists():
        save_tiny_model(folder)


def outcomes(place: Place, row: str) -> dict[str, list[dict[str, Any]]]:
    """Return score, success and number of steps of each problem that has been played, by kind of games.

    Of several trials of a problem the last one counts, and the steps of all.
    """
    played: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        file = place.played(row, kind) / "episodes" / "predicted.jsonl"
        if not file.with_suffix(".done").exists():
            continue
        problems: dict[str, dict[str, Any]] = {}
        for episode in sorted(read_episodes(file), key=_trial):
            name, outcome = episode.id.split("/trial")[0], episode.outcome
            steps = problems.get(name, {"steps": 0})["steps"] + len(episode.steps)
            problems[name] = {"id": name, "score": outcome.score, "success": outcome.success, "steps": steps}
        played[kind] = list(problems.values())
    return played


def _trial(episode: Episode) -> tuple[str, int]:
    """Return the id of the problem and the number of the trial; 0 for agents that play once."""
    name, _, number = episode.id.partition("/trial")
    return name, int(number or 0)


def interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float, float]:
    """Return the mean and its 95% bootstrap interval over episodes."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(resamples))
    return statistics.fmean(values), means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]


def summary(results: dict[str, Any], name: str, row: str, kind: str) -> dict[str, Any]:
    """Return score and success with intervals, and the steps, of a row over all its seeds; empty without episodes."""
    runs = results.get("episodes", {}).get(name, {}).get(row, {})
    episodes = [episode for seed in runs.values() for episode in seed.get(kind, [])]
    if not episodes:
        return {}
    return {
        "score": interval([100 * episode["score"] for episode in episodes]),
        "success": interval([100.0 * episode["success"] for episode in episodes]),
        "steps": sum(episode["steps"] for episode in episodes),
        "episodes": len(episodes),
        "seeds": len(runs),
    }


def minutes(results: dict[str, Any], name: str, row: str) -> float:
    """Return the minutes of a row's own commands, over all seeds."""
    commands = [t for t in results["seconds"] if t["step"].startswith(f"{name}-seed") and f": {row}: " in t["step"]]
    return sum(t["seconds"] for t in commands) / 60


def report(results: dict[str, Any], console: Console) -> None:
    for name, game in GAMES.items():
        if name not in results.get("episodes", {}):
            continue
        table = Table(title=f"{game.name}: mean and 95% interval over episodes")
        kinds = [f"{what}, {kind}" for what in ("score", "success") for kind in KINDS]
        for column in ("", *kinds, "episodes", "steps", "minutes"):
            table.add_column(column, justify="right" if column else "left")
        for row, method in ROWS.items():
            by_kind = {kind: summary(results, name, row, kind) for kind in KINDS}
            known = [figures for figures in by_kind.values() if figures]
            if known:
                cells = [_cell(by_kind[kind], what) for what in ("score", "success") for kind in KINDS]
                total = [sum(figures[what] for figures in known) for what in ("episodes", "steps")]
                table.add_row(method.title, *cells, *map(str, total), f"{minutes(results, name, row):.0f}")
        console.print(table)


def _cell(figures: dict[str, Any], what: str) -> str:
    if not figures:
        return "-"
    mean, low, high = figures[what]
    return f"{mean:.0f} [{low:.0f}, {high:.0f}]"


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Collect the figures so far, beside those of earlier runs."""
    file = result_file(options)
    known = read_results(file)
    episodes: dict[str, Any] = known.get("episodes", {})
    for name in GAMES:
        for place in places(options, name):
            for row in ROWS:
                if played := outcomes(place, row):
                    episodes.setdefault(name, {}).setdefault(row, {})[str(place.seed)] = played
    return {
        "scale": options.scale,
        "episodes": episodes,
        "seconds": times(options.runs / options.scale, known),
        **environment(),
    }


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
    console.width = max(console.width, 140)  # of the table
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
