"""Pairs of observations and actions as episodes."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_rft.episodes import EpisodeError, make_demonstrations, read_demonstrations, read_episodes, write_episodes


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_lines_of_an_episode_are_its_steps(tmp_path: Path) -> None:
    first = {
        "episode": "a",
        "task": "boil",
        "task_description": "Boil water.",
        "observation": "Kitchen.",
        "action": "up",
    }
    path = write(tmp_path, first, {"episode": "a", "observation": "Stove.", "action": "heat"},
                 {"episode": "b", "observation": "Hall.", "action": "wait"})  # fmt: skip
    boil, other = read_demonstrations(path, "house")
    assert [(step.action, step.observation) for step in boil.steps] == [("up", "Stove."), ("heat", "")]
    assert (boil.id, boil.task, boil.task_description, boil.initial_observation) == (
        "a",
        "boil",
        "Boil water.",
        "Kitchen.",
    )
    assert [step.reward for step in boil.steps] == [0.0, 1.0] and boil.outcome.success
    assert (other.id, other.task, other.env, other.initial_observation) == ("b", "house", "house", "Hall.")
    write_episodes(tmp_path / "episodes.jsonl", [boil, other])
    assert read_episodes(tmp_path / "episodes.jsonl") == [boil, other]


def test_a_line_without_an_episode_is_one(tmp_path: Path) -> None:
    pairs = [{"observation": "1 + 1", "action": "2"}, {"observation": "2 + 2", "action": "4"}]
    assert [len(episode.steps) for episode in read_demonstrations(write(tmp_path, *pairs))] == [1, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "pairs.jsonl: expected JSON lines with an observation and an action"),
        (["{"], r"pairs.jsonl:1: not a line of JSON"),
        (["[" * 9000], r"pairs.jsonl:1: not a line of JSON"),
        ([{"observation": "a", "action": "\ud800"}], r"pairs.jsonl:1: action: expected text that can be"),
        ([{"observation": "a", "action": "b", "episode": ""}], r"pairs.jsonl:1: id: expected a text, got an empty"),
        ([[1]], r"pairs.jsonl:1: expected an object, got list"),
        ([{"observation": "a"}], r"pairs.jsonl:1: action: missing"),
        ([{"observation": "a", "action": 1}], r"pairs.jsonl:1: action: expected text, got 1"),
        (
            [{"observation": "a", "action": "b", "obs": "c"}],
            r"pairs.jsonl:1: obs: expected one of the keys observation",
        ),
        (
            [{"episode": name, "observation": "a", "action": "b"} for name in "aba"],
            r"pairs.jsonl:3: episode: the lines of episode 'a' are not together",
        ),
    ],
)
def test_wrong_lines(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(EpisodeError, match=message):
        read_demonstrations(write(tmp_path, *rows))


def test_a_list_of_pairs_is_what_a_file_of_them_is(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"observation": "1 + 1", "action": "2"}\n{"observation": "1 + 2", "action": "3"}\n')
    assert make_demonstrations([("1 + 1", "2"), ("1 + 2", "3")], "sums") == read_demonstrations(file, "sums")
    wrong: list[Any] = [("1 + 1",), "12", ("1 + 1", 2), {"observation": "1", "action": "2"}]
    for pair in wrong:
        with pytest.raises(EpisodeError, match=r"pairs\[1\]: expected \(observation, action\), got"):
            make_demonstrations([("1 + 1", "2"), pair])
