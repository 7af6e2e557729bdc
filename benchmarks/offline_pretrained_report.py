"""Tables of `offline_pretrained.py`: games by policy, and differences between policies in the same games."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from experiment import bootstrap, curve, interval

from lit_rft.demo.intervals import gain_interval
from lit_rft.demo.report import markdown_table
from lit_rft.episodes import Episode

TEMPERATURES = (0.0, 0.7, 1.0)  # of the held-out games
DIFFERENCES = (
    ("returns", "sft"), ("solved", "sft"), ("more", "sft"), ("expert", "sft"), ("by_q", "sft"),
    ("returns", "solved"), ("returns", "more"), ("returns", "expert"), ("solved", "expert"),
)  # fmt: skip
Measure = Literal["success", "score"]
Games = Mapping[str, list[Any]]  # id -> success, number of actions and, in newer results, score
COLUMNS: Mapping[Measure, int] = {"success": 0, "score": 2}  # of games
_SCALARS = ("q_return_rank_correlation", "advantage_std", "weight_mean", "clamped_fraction", "weight_entropy")


def diagnostics(folder: Path, decisions: float) -> dict[str, float]:
    """Return means of a training run over its steps: in a single pass, before an episode is learnt from.

    Runs of SFT have the share of steps with a gradient norm above 1 alone.

    Args:
        folder: of the run.
        decisions: mean number in an optimiser step.
    """
    scalars = {name: [value for _, value in curve(folder, f"train/flat/{name}")] for name in _SCALARS}
    shares = [math.exp(math.log(decisions) * (entropy - 1)) for entropy in scalars.pop("weight_entropy")]
    large = [norm > 1 for _, norm in curve(folder, "train/grad_norm")]
    means = {**scalars, "effective_share": shares, "grad_norm_above_1": large}
    return {name: round(statistics.mean(v), 4) for name, v in means.items() if v}


def failures(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return the number of failed games, the share ended by the environment, and means of invalid and repeated actions.

    An action is repeated if it is among the earlier ones of its game.
    """
    lost = [episode for episode in episodes if not episode.outcome.success]
    if not lost:
        return {"games": 0}
    failed = [episode.steps for episode in lost]
    invalid = [sum(not step.valid for step in steps) for steps in failed]
    repeated = [len(steps) - len({step.action for step in steps}) for steps in failed]
    means = {"invalid": round(statistics.mean(invalid), 2), "repeated": round(statistics.mean(repeated), 2)}
    return {"games": len(lost), "ended": round(statistics.mean(e.outcome.terminated for e in lost), 2), **means}


def sign_test(won: int, lost: int) -> float:
    """Return McNemar's exact two-sided p-value, from the games that only one of two policies solves."""
    number, low = won + lost, min(won, lost)
    return min(1.0, 2 * sum(math.comb(number, i) for i in range(low + 1)) / 2**number)


def paired(results: Mapping[str, Any], first: str, second: str, temperature: float) -> list[list[tuple[float, float]]]:
    """Return the measures of two policies in the same games, for each seed on `test` that has both."""
    column = COLUMNS[measure(results)]
    keys = [f"{name}-{temperature:g}" for name in (first, second)]
    seeds = [record["games"] for record in results["seeds"].values() if record["split"] == "test"]
    played = [[games[key] for key in keys] for games in seeds if all(key in games for key in keys)]
    return [[(a[game][column], b[game][column]) for game in sorted(a)] for a, b in played]


def difference_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """Format differences between policies: over seeds (Student's t), and over the games of all seeds.

    Intervals over games are Newcombe's for successes, and by a bootstrap for scores.
    """
    yield ["difference, points", "mean", "by seed", "95% interval over games", "won / lost", "p"]
    for temperature in TEMPERATURES:
        for first, second in DIFFERENCES:
            seeds = paired(results, first, second, temperature)
            if not seeds:
                continue
            gains = [100 * statistics.mean(a - b for a, b in games) for games in seeds]
            a, b = ([game[index] for games in seeds for game in games] for index in (0, 1))
            low, high = (100 * end for end in game_interval(measure(results), a, b))
            won, lost = (sum(x > y for x, y in zip(*both, strict=True)) for both in ((a, b), (b, a)))
            names = " - ".join(title(results, name).removeprefix("+ ") for name in (first, second))
            by_seed = " / ".join(f"{gain:+.1f}" for gain in gains)
            ends = f"{low:+.1f} to {high:+.1f}"
            p = f"{sign_test(won, lost):.3f}"
            yield [f"{kind(temperature)}: {names}", interval(gains, 1), by_seed, ends, f"{won} / {lost}", p]


def game_interval(measure: Measure, a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the mean difference a - b over the same games."""
    if measure == "success":
        return gain_interval([bool(x) for x in b], [bool(x) for x in a])
    _, low, high = bootstrap([x - y for x, y in zip(a, b, strict=True)])
    return low, high


def success_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """Format the percentage of solved games, in brackets the mean number of actions, and scores if they count."""
    heading = "solved (actions)" if measure(results) == "success" else "score, solved (actions)"
    yield [heading, *(f"seed {seed}, `{r['split']}`" for seed, r in results["seeds"].items())]
    settings = results["settings"]
    labels = {"medium": f"SFT, training games, temperature {settings['medium_temperature']:g}"}
    for temperature in TEMPERATURES:
        for name in settings["methods"]:
            labels[f"{name}-{temperature:g}"] = f"{title(results, name)}, {kind(temperature)}"
    for key, label in labels.items():
        played = [record["games"].get(key) for record in results["seeds"].values()]
        if any(played):
            yield [label, *(cell(games, measure(results)) if games else "" for games in played)]


def task_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """Format the mean measure of each task's held-out games, in percent, by policy and seed; tasks are parts of ids."""
    column = COLUMNS[measure(results)]
    tables = {}
    for seed, record in results["seeds"].items():
        for key, games in sorted(record["games"].items()):
            by_task: dict[str, list[float]] = {}
            for game, values in games.items():
                by_task.setdefault(game.split("/")[-3], []).append(values[column])
            if key != "medium":
                tables[f"seed {seed}, {key}"] = {task: statistics.mean(values) for task, values in by_task.items()}
    tasks = sorted({task for means in tables.values() for task in means})
    yield [f"{measure(results)} by task", *tasks]
    for label, means in tables.items():
        yield [label, *(f"{100 * means[task]:.0f}" if task in means else "" for task in tasks)]


def diagnostic_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """Format the diagnostics of training, by seed."""
    records = {seed: record["diagnostics"] for seed, record in results["seeds"].items()}
    yield ["", *(f"{name}, seed {seed}" for seed, methods in records.items() for name in methods)]
    columns = [values for methods in records.values() for values in methods.values()]
    for name in dict.fromkeys(name for values in columns for name in values):
        yield [name, *(f"{values[name]:.2f}" if name in values else "" for values in columns)]


def failure_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """Format the failed games of each policy and seed: how many, their ends, repeated and invalid actions."""
    yield ["failed games", "number", "ended by the environment", "repeated actions", "invalid actions"]
    for seed, record in results["seeds"].items():
        for key, values in sorted(record.get("failures", {}).items()):
            numbers = [
                f"{values[name]:g}" if name in values else "" for name in ("games", "ended", "repeated", "invalid")
            ]
            yield [f"seed {seed}, {key}", *numbers]


ROWS = (success_rows, difference_rows, task_rows, diagnostic_rows, failure_rows)


def title(results: Mapping[str, Any], name: str) -> str:
    text: str = results["settings"]["methods"][name]["title"]
    return text


def kind(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"


def measure(results: Mapping[str, Any]) -> Measure:
    name: Measure = results["settings"].get("measure", "success")
    return name


def cell(games: Games, measure: Measure) -> str:
    share, actions, *scores = (statistics.mean(column) for column in zip(*games.values(), strict=True))
    score = f"{100 * scores[0]:.1f}, " if measure == "score" else ""
    return f"{score}{100 * share:.1f} ({actions:.1f})"


def report(results: Mapping[str, Any]) -> None:
    """Print the tables as Markdown.

    Raises:
        SystemExit: Without results.
    """
    if not results:
        raise SystemExit("expected results, got none: run it without --report first")
    tables = [list(rows(results)) for rows in ROWS]
    print("\n\n".join(markdown_table(rows) for rows in tables if len(rows) > 1))
