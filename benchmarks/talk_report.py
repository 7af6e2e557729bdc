"""Tables of the comparison, by environment: scores and costs of rows, successes by task, differences between rows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiment import Step, bootstrap, interval
from rich import box
from rich.console import Console
from rich.table import Table
from talk_place import GAMES, Place
from talk_rows import ROWS

from lit_rft.demo.intervals import gain_interval
from lit_rft.episodes import Episode, read_episodes

KINDS = ("seen", "unseen")
COSTS = ("env_steps", "tokens_sampled", "tokens_read", "tokens_trained", "seconds")
_CHOICES: dict[str, Callable[[Sequence[Any]], Any]] = {  # of a problem's trials
    "first trial": lambda trials: trials[0],
    "last trial": lambda trials: trials[-1],
    "best trial": lambda trials: max(trials, key=lambda trial: (trial["success"], trial["score"])),
}


PAIRS = (  # rows whose difference says what one stage, or the hierarchy, contributes
    ("glider_sft", "sft"), ("glider_sft_once", "sft_once"), ("sft", "glider_sft_once"), ("sft", "sft_once"),
    ("glider_sft", "glider_sft_once"), ("awac", "sft"), ("awac_once", "sft_once"), ("awac_once", "sft"),
    ("glider", "glider_sft"), ("glider_once", "glider_sft_once"), ("glider_once", "glider_sft"), ("glider", "awac"),
    ("glider_once", "awac_once"), ("glider", "glider_without_sft"), ("glider_online", "glider"), ("ppo", "sft"),
    ("ilql", "sft"), ("glider", "ppo"), ("glider", "ilql"), ("glider_online", "ppo"), ("nat", "sft"),
    ("nat", "nat_meaningless"), ("eto", "sft"), ("agent_tuning", "sft"),
)  # fmt: skip


def outcomes(place: Place, row: str) -> dict[str, list[dict[str, Any]]]:
    """Return each problem that has been played with its trials' scores and successes, by kind of games."""
    played: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        file = place.played(row, kind) / "episodes" / "predicted.jsonl"
        if not file.with_suffix(".done").exists():
            continue
        trials: dict[str, list[dict[str, Any]]] = {}
        for episode in sorted(read_episodes(file), key=_trial):
            outcome = {"score": episode.outcome.score, "success": episode.outcome.success}
            trials.setdefault(_trial(episode)[0], []).append(outcome)
        played[kind] = [{"id": name, "trials": scores} for name, scores in trials.items()]
    return played


def _trial(episode: Episode) -> tuple[str, int]:
    """Return the id of the problem and the number of the trial; 0 for agents that play once."""
    name, _, number = episode.id.partition("/trial")
    return name, int(number or 0)


def costs(row: str, steps: Sequence[Step], seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return what a row has taken, apart for `training` (exploration included) and `play`.

    Args:
        row: its name.
        steps: all that the row needs, those that it shares with others as well; other rows' play does not count.
        seconds: of each step, by its name.
    """
    sums = {part: dict.fromkeys(COSTS, 0.0) for part in ("training", "play")}
    for step in steps:
        owner, what = step.name.rsplit(": ", 2)[1:]
        if what in KINDS and owner != row:
            continue
        part = sums["play" if what in KINDS else "training"]
        part["seconds"] += seconds.get(step.name, 0.0)
        for file in step.costs:
            for name, value in (_read_costs(file) if file.exists() else {}).items():
                part[name] = part.get(name, 0.0) + value
    return {part: {name: values[name] for name in COSTS} for part, values in sums.items()}


def _read_costs(file: Path) -> dict[str, float]:
    """Read the costs of training, or add up those of played episodes."""
    if file.suffix == ".json":
        read = json.loads(file.read_text())
        return {name: float(read.get(name, 0)) for name in COSTS if name != "seconds"}  # that of the command counts
    episodes = read_episodes(file)
    tokens = [episode.extra.get("tokens", {}) for episode in episodes]
    return {
        "env_steps": float(sum(len(episode.steps) for episode in episodes)),
        "tokens_sampled": float(sum(counts.get("sampled", 0) for counts in tokens)),
        "tokens_read": float(sum(counts.get("read", 0) for counts in tokens)),
    }


def summary(results: dict[str, Any], name: str, row: str, kind: str, trial: str = "last trial") -> dict[str, Any]:
    """Return score and success of a row over all its seeds, with intervals; empty without episodes."""
    runs = results.get("episodes", {}).get(name, {}).get(row, {})
    chosen = [_CHOICES[trial](problem["trials"]) for seed in runs.values() for problem in seed.get(kind, [])]
    if not chosen:
        return {}
    return {
        "score": bootstrap([100 * outcome["score"] for outcome in chosen]),
        "success": bootstrap([100.0 * outcome["success"] for outcome in chosen]),
        "episodes": len(chosen),
    }


def report(results: dict[str, Any], console: Console) -> None:
    """Print the tables, as Markdown."""
    for name, game in GAMES.items():
        if name not in results.get("episodes", {}):
            continue
        title = f"{game.name}: mean and 95% interval; costs of a seed, training + play"
        scores = [f"{what}, {kind}" for what in ("score", "success") for kind in KINDS]
        columns = [*scores, "episodes", "env steps", "sampled", "read", "trained", "minutes"]
        console.print(_table(title, columns, _rows(results, name)))
        console.print(_by_seed(results, name))
        console.print(_by_task(results, name))
        if differences := list(_differences(results, name, game.long)):
            groups = ("seeds", "all tasks", *(("longer tasks", "other tasks") if game.long else ()))
            console.print(_table("difference of solved games, points", groups, differences))


def _rows(results: dict[str, Any], name: str) -> Iterator[list[str]]:
    """Yield the rows that have been played, one line for each choice among trials."""
    for row, method in ROWS.items():
        for trial in _CHOICES if method.trials else ("last trial",):
            if cells := _cells(results, name, row, trial):
                yield [f"{method.title}, {trial}" if method.trials else method.title, *cells]


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, box=box.MARKDOWN)
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def successes(results: Mapping[str, Any], name: str, row: str) -> dict[str, dict[str, bool]]:
    """Return whether each problem's last trial was solved, by seed and id, of seen and unseen games."""
    seeds = results["episodes"][name].get(row, {})
    return {
        seed: {problem["id"]: problem["trials"][-1]["success"] for kind in kinds.values() for problem in kind}
        for seed, kinds in seeds.items()
        if set(kinds) == set(KINDS)
    }


def task_of(problem: str) -> str:
    return problem.split("/")[-3]


def _by_seed(results: Mapping[str, Any], name: str) -> Table:
    """Return the number of games that each seed has solved."""
    rows = []
    for row in ROWS:
        if seeds := successes(results, name, row):
            solved = ", ".join(f"{sum(games.values())} of {len(games)}" for _, games in sorted(seeds.items()))
            rows.append([ROWS[row].title, solved])
    return _table("solved games by seed", ["solved"], rows)


def _by_task(results: Mapping[str, Any], name: str) -> Table:
    """Return the percentage of solved games of each task, over all seeds."""
    by_row = {row: seeds for row in ROWS if (seeds := successes(results, name, row))}
    tasks = sorted({task_of(problem) for seeds in by_row.values() for games in seeds.values() for problem in games})
    rows = []
    for row, seeds in by_row.items():
        solved = {task: [s for g in seeds.values() for p, s in g.items() if task_of(p) == task] for task in tasks}
        shares = [f"{100 * mean(values):.0f}" if values else "" for values in solved.values()]
        rows.append([ROWS[row].title, *shares, str(sum(map(len, solved.values())))])
    return _table("solved games by task, percent", [*(task.removeprefix("pick_") for task in tasks), "games"], rows)


def _differences(results: Mapping[str, Any], name: str, long: Sequence[str]) -> Iterator[list[str]]:
    """Yield differences of the percentage of solved games between pairs of rows, in the seeds and games of both.

    Each pair has three cells: all tasks, the longer ones, and the others; without longer ones the first. A cell has
    the mean with Student's interval over seeds, and Newcombe's interval over the games of all seeds.
    """
    for first, second in PAIRS:
        a, b = (successes(results, name, row) for row in (first, second))
        seeds = [seed for seed in a if seed in b and a[seed].keys() == b[seed].keys()]
        if not seeds:
            continue
        cells = []
        for kinds in ((True, False), (True,), (False,)) if long else ((True, False),):
            games = [[(a[s][p], b[s][p]) for p in sorted(a[s]) if (task_of(p) in long) in kinds] for s in seeds]
            cells.append(_difference(games) if all(games) else "")
        yield [f"{ROWS[first].title} - {ROWS[second].title}", str(len(seeds)), *cells]


def _difference(games: Sequence[Sequence[tuple[bool, bool]]]) -> str:
    """Format the difference of two rows' successes in the same games of each seed."""
    gains = [100 * mean(a - b for a, b in seed) for seed in games]
    after, before = zip(*itertools.chain(*games), strict=True)
    low, high = (100 * end for end in gain_interval(before, after))
    return f"{interval(gains, 1)} ({low:+.1f} to {high:+.1f})"


def _cells(results: dict[str, Any], name: str, row: str, trial: str) -> list[str]:
    """Return the cells of a row; costs are shown once, for the last trial."""
    by_kind = {kind: summary(results, name, row, kind, trial) for kind in KINDS}
    if not any(by_kind.values()):
        return []
    cells = [_mean(by_kind[kind].get(what)) for what in ("score", "success") for kind in KINDS]
    cells.append(str(sum(figures.get("episodes", 0) for figures in by_kind.values())))
    runs = list(results.get("costs", {}).get(name, {}).get(row, {}).values()) if trial == "last trial" else []
    for cost in COSTS:
        scale = 60 if cost == "seconds" else 1
        training, play = (mean([run[part][cost] for run in runs] or [0]) for part in ("training", "play"))
        cells.append(f"{_short(training / scale)} + {_short(play / scale)}" if runs else "")
    return cells


def _mean(figures: tuple[float, float, float] | None) -> str:
    if figures is None:
        return "-"
    return "{:.0f} ({:.0f} to {:.0f})".format(*figures)


def _short(number: float) -> str:
    """Write a number in few digits: 2.5, 950, 12.3k, 4.6M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.1f}" if number % 1 and number < 100 else f"{number:.0f}"
