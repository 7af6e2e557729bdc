"""Tables of the demo: results with intervals, and a game before and after, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_rft.demo.comparison import TOTAL, Pair
from lit_rft.episodes import Episode, Step

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_LONGEST = 160  # characters of an action or an observation in the console
_SAME = "(the same again)"
_LABELS = {
    TOTAL: "all games",
    "pick_and_place_simple": "pick and place",
    "look_at_obj_in_light": "look in light",
    "pick_clean_then_place_in_recep": "clean and place",
    "pick_heat_then_place_in_recep": "heat and place",
    "pick_cool_then_place_in_recep": "cool and place",
    "pick_two_obj_and_place": "place two",
}


def table_cells(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Format results: a row of the heads, one per task, one of all games, and one of its intervals.

    Args:
        results: task -> `Row.as_json()`.
    """
    rows = [["task", "games", "before", "after", "gain", "actions"]]
    for task, row in results.items():
        cells = [f"{row['before']:.0%}", f"{row['after']:.0%}", f"{100 * row['gain']:+.0f}"]
        rows.append([task_label(task), str(row["games"]), *cells, f"{row['steps_after']:.1f}"])
    total = results[TOTAL]
    ends = [
        " to ".join(f"{100 * end:.0f}" for end in total[f"{name}_interval"]) for name in ("before", "after", "gain")
    ]
    return [*rows, ["95% interval", "", *ends, ""]]


def task_label(task: str) -> str:
    """Return a task's name in words, short enough for a table and a picture."""
    name = task.removeprefix("synthetic-")
    return _LABELS.get(name, name.replace("_", " "))


def score_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Make the table for the console."""
    from rich.table import Table

    table = Table(title="synthetic household games on held-out floor plans, solved")
    heads, *rows = table_cells(results)
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=not index)
    for index, row in enumerate(rows):
        if index == len(rows) - 2:
            table.add_section()
        table.add_row(*row, style="bold" if index >= len(rows) - 2 else None)
    return table


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a Markdown table; the first one has the heads, the first column is text."""
    heads, *others = rows
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def example_table(pair: Pair) -> Table:
    """Make the table of one game for the console, as long as the trained model's."""
    from rich.table import Table
    from rich.text import Text

    before, after = pair
    table = Table(title=Text(f"One game, before and after: {after.task_description}"), show_lines=True)
    table.add_column("", justify="right")
    table.add_column(f"before: {_ending(before)}", ratio=1)
    table.add_column(f"after: {_ending(after)}", ratio=1)
    for index in range(len(after.steps)):
        table.add_row(str(index + 1), *(_console_step(episode.steps, index) for episode in pair))
    if (left := len(before.steps) - len(after.steps)) > 0:
        table.add_row("...", f"{left} more actions without success", "")
    return table


def example_markdown(pair: Pair) -> str:
    """Format one game as Markdown: all actions and observations of both episodes, side by side."""
    before, after = pair
    rows = [["", f"before training: {_ending(before)}", f"after training: {_ending(after)}"]]
    for index in range(max(len(before.steps), len(after.steps))):
        rows.append([str(index + 1), *(_markdown_step(episode.steps, index) for episode in pair)])
    table = markdown_table(rows).replace("| --- | ---: | ---: |", "|---:|---|---|", 1)
    opening = f"**{_plain(after.task_description)}**\n\n> {_plain(after.initial_observation)}"
    return f"{opening}\n\n{table}\n"


def report_markdown(summary: Mapping[str, Any], pair: Pair) -> str:
    """Write the whole report."""
    minutes = sum(summary["seconds"].values()) / 60
    return (
        f"# {summary['model']} on held-out household games, seed {summary['seed']}\n\n"
        f"{summary['expert_episodes']} expert episodes, {minutes:.1f} minutes "
        f"({sum(summary['cpu_seconds'].values()) / 60:.1f} minutes of CPU time).\n\n"
        f"![success before and after; loss against steps](demo.png)\n\n"
        f"{markdown_table(table_cells(summary['results']))}\n\n"
        "Synthetic household games, not ALFWorld's own. Gain: points over the same games. Actions: mean of a game "
        "after training. 95% intervals: Wilson's for shares, Newcombe's for the gain.\n\n"
        f"## One game, before and after\n\n{example_markdown(pair)}"
    )


def _ending(episode: Episode) -> str:
    word = "solved" if episode.outcome.success else "not solved"
    return f"{word} in {len(episode.steps)} actions"


def _console_step(steps: Sequence[Step], index: int) -> Text:
    from rich.text import Text

    if index >= len(steps):
        return Text()
    if _repeats(steps, index):
        return Text(_SAME, style="dim")
    step = steps[index]
    text = Text(f"> {_short(step.action)}\n", style="bold" if step.valid else "bold red")
    return text.append(_short(step.observation), style="not bold dim default")


def _markdown_step(steps: Sequence[Step], index: int) -> str:
    if index >= len(steps):
        return ""
    if _repeats(steps, index):
        return _SAME
    step = steps[index]
    mark = "" if step.valid else " (invalid)"
    action = _plain(step.action).replace("`", "'") or " "
    return f"`{action}`{mark}<br>{_plain(step.observation)}"


def _repeats(steps: Sequence[Step], index: int) -> bool:
    """Return whether a step is the same as the one before: action and observation."""
    texts = [(step.action, step.observation) for step in steps[max(0, index - 1) : index + 1]]
    return len(texts) == 2 and texts[0] == texts[1]


def _plain(text: str) -> str:
    """Return a text in one line that fits into a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."
