"""What the demo writes about its games: tables, the episode side by side, the picture."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from lit_rft.demo.comparison import choose_example, compare, pair_games
from lit_rft.demo.picture import plot, read_losses
from lit_rft.demo.report import example_markdown, example_table, markdown_table, score_table, table_cells, task_label
from lit_rft.episodes import Episode, Outcome, Step

CLEAN, PLACE = "synthetic-pick_clean_then_place_in_recep", "synthetic-pick_and_place_simple"


def game(number: int, task: str, success: bool, actions: int = 3, valid: bool = True) -> Episode:
    """An episode of one game."""
    steps = [Step(f"go to desk {i}", f"You see | <a> mug {i}.\nNothing else.", 0.0, 0.0, valid) for i in range(actions)]
    outcome = Outcome(float(success), success, success, not success, "goal" if success else "step_limit")
    return Episode(
        f"{task}/{number}", "alfworld-synthetic", "1", task, "test", {"kind": "policy"}, "put a mug on a desk",
        "A room.", steps, [], outcome,
    )  # fmt: skip


@pytest.fixture
def pairs() -> list[tuple[Episode, Episode]]:
    """Ten games of two tasks: one solved before, seven after."""
    before = [game(n, task, n == 0 and task == PLACE) for task in (CLEAN, PLACE) for n in range(5)]
    after = [game(n, task, n < (3 if task == CLEAN else 4), actions=2 + n) for task in (PLACE, CLEAN) for n in range(5)]
    return pair_games(before, after[::-1])


def test_games_are_counted_by_task_and_in_total(pairs: list[tuple[Episode, Episode]]) -> None:
    place, clean, total = compare(pairs)
    assert [row.task for row in (place, clean, total)] == [PLACE, CLEAN, "all"]
    assert (sum(place.before), sum(place.after), sum(clean.before), sum(clean.after)) == (1, 4, 0, 3)
    figures = total.as_json()
    assert (figures["games"], figures["before"], figures["after"]) == (10, 0.1, 0.7)
    assert figures["gain"] == pytest.approx(0.6) and figures["steps_after"] == 4 and figures["steps_before"] == 3
    low, high = figures["gain_interval"]
    assert -1 <= low < 0.6 < high <= 1 and figures["after_interval"][0] < 0.7 < figures["after_interval"][1]


def test_other_games_are_refused() -> None:
    with pytest.raises(ValueError, match="in one of both only"):
        pair_games([game(0, PLACE, False)], [game(1, PLACE, True)])
    with pytest.raises(ValueError, match="got none"):
        pair_games([], [])


def test_the_game_to_show_is_newly_solved_valid_and_readable() -> None:
    before = [game(n, PLACE, n == 0) for n in range(5)]
    after = [
        game(0, PLACE, True, actions=9),  # solved before as well
        game(1, PLACE, True, actions=12, valid=False),
        game(2, PLACE, True, actions=30),
        game(3, PLACE, True, actions=7),
        game(4, PLACE, False, actions=9),
    ]
    chosen = choose_example(pair_games(before, after))
    assert chosen[1] is after[3]
    assert choose_example([(before[1], after[4])]) == (before[1], after[4])  # none is solved


def test_the_table_has_the_intervals_of_all_games(pairs: list[tuple[Episode, Episode]]) -> None:
    results = {row.task: row.as_json() for row in compare(pairs)}
    rows = table_cells(results)
    assert [row[0] for row in rows] == ["task", "pick and place", "clean and place", "all games", "95% interval"]
    assert rows[3][1:] == ["10", "10%", "70%", "+60", "4.0"]
    assert rows[4][2:4] == ["2 to 40", "40 to 89"]
    assert markdown_table(rows).splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(score_table(results))
    printed = console.export_text()
    assert "…" not in printed and "40 to 89" in printed


def test_names_of_tasks_are_short_and_distinct() -> None:
    from lit_rft.envs.alfworld.games import TASKS

    labels = [task_label(f"synthetic-{task}") for task in TASKS]
    assert len(set(labels)) == 6 and max(map(len, labels)) <= 20, labels


def test_an_episode_side_by_side_is_whole_in_markdown_and_short_in_the_console() -> None:
    pair = game(0, PLACE, False, actions=30, valid=False), game(0, PLACE, True, actions=2)
    lines = example_markdown(pair).splitlines()
    assert "not solved in 30 actions" in lines[4] and "| after training: solved in 2 actions |" in lines[4]
    assert lines[6] == (
        r"| 1 | `go to desk 0` (invalid)<br>You see \| &lt;a> mug 0. Nothing else. "
        r"| `go to desk 0`<br>You see \| &lt;a> mug 0. Nothing else. |"
    )
    assert len(lines) == 6 + 30 and lines[-1].endswith("Nothing else. |  |")
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(example_table(pair))
    printed = console.export_text()
    assert "28 more actions" in printed and "go to desk 1" in printed and "go to desk 2" not in printed


def test_a_repeated_step_is_written_once() -> None:
    before, after = game(0, PLACE, False, actions=3, valid=False), game(0, PLACE, True, actions=4)
    before.steps[1] = before.steps[2] = before.steps[0]
    lines = example_markdown((before, after)).splitlines()[6:]
    assert [line.split(" | ")[1] == "(the same again)" for line in lines] == [False, True, True, False]
    assert "(the same again)" not in "".join(line.split(" | ", 2)[2] for line in lines)
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(example_table((before, after)))
    assert console.export_text().count("(the same again)") == 2


def test_the_picture_is_written(pairs: list[tuple[Episode, Episode]], tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for first, value in ((0, 2.0), (3, 1.0)):  # resumed at step 3 of 5
        with SummaryWriter(str(tmp_path / "logs"), filename_suffix=f"-{first}") as writer:
            for step in range(first, 5):
                writer.add_scalar("train/loss", value, step)
    losses = read_losses(tmp_path / "logs")
    assert losses == [(0, 2.0), (1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0)]
    plot({row.task: row.as_json() for row in compare(pairs)}, losses, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
