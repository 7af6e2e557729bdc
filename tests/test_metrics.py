"""Scores by task, and over batches and processes."""

import math
from typing import Any

import pytest
import torch
from rich.console import Console

from lit_rft.callbacks.score_table import score_cells, score_table
from lit_rft.metrics import COLUMNS, AnswerMetrics, EpisodeMetrics, answer_cells, episode_cells, pass_at_k
from lit_rft.testing.tiny import make_episode


def _episode(task: str, score: float, reason: str = "step_limit", steps: int = 2, valid: int = 1) -> Any:
    episode = make_episode(0, steps, task)
    for index, step in enumerate(episode.steps):
        step.valid = index < valid
    episode.outcome.score, episode.outcome.reason = score, reason
    episode.outcome.success = reason == "goal"
    episode.source["malformed"] = 3
    episode.extra["utterances"] = {"high": ["x"], "low": ["y"] * 5}
    return episode


def test_means_by_task_and_over_tasks() -> None:
    metrics = EpisodeMetrics(["a", "b", "never"])
    for episode in (_episode("a", 1.0, "goal", 4, 4), _episode("a", 0.5), _episode("b", 0.25)):
        metrics.update(episode)
    table = metrics.compute()
    assert set(table) == {"a", "b", "mean"} and set(table["a"]) == set(COLUMNS)
    assert table["a"]["score"] == pytest.approx(75) and table["b"]["score"] == pytest.approx(25)
    assert table["mean"]["score"] == pytest.approx(50)  # over tasks, not over episodes
    assert table["a"]["success"] == pytest.approx(0.5)
    assert table["a"]["steps"] == pytest.approx(3)
    assert table["a"]["valid_actions"] == pytest.approx(5 / 6)  # of all actions
    assert table["a"]["invalid_answers"] == pytest.approx(6 / 12)  # of all utterances


def test_environment_errors_do_not_lower_the_score() -> None:
    metrics = EpisodeMetrics(["a"])
    metrics.update(_episode("a", 1.0, "goal"))
    metrics.update(_episode("a", 0.0, "env_error"))
    assert metrics.compute()["a"]["score"] == pytest.approx(100)
    assert metrics.compute()["a"]["env_errors"] == pytest.approx(0.5)


def test_a_task_whose_environments_all_failed_has_no_score() -> None:
    metrics = EpisodeMetrics(["a", "b"])
    metrics.update(_episode("a", 0.8))
    metrics.update(_episode("b", 0.0, "env_error"))
    table = metrics.compute()
    assert math.isnan(table["b"]["score"]) and table["b"]["env_errors"] == 1
    assert table["mean"]["score"] == pytest.approx(80)
    Console().print(score_table(*score_cells(table, "task", episode_cells), "with a gap"))


def test_parts_add_up() -> None:
    episodes = [_episode("a", s / 10) for s in range(5)] + [_episode("b", 0.3)]
    whole, left, right = (EpisodeMetrics(["a", "b"]) for _ in range(3))
    for index, episode in enumerate(episodes):
        whole.update(episode)
        (left if index % 2 else right).update(episode)
    left.sums += right.sums
    left.counts += right.counts
    combined, expected = left.compute(), whole.compute()
    for task, row in expected.items():
        assert combined[task] == pytest.approx(row)


def _reporting(task: str, **metrics: float) -> Any:
    episode = _episode(task, 1.0)
    episode.extra["metrics"] = metrics
    return episode


def test_metrics_of_the_environments_own_are_columns() -> None:
    metrics = EpisodeMetrics(["a", "b", "c"])
    failed = _reporting("a", moves=99.0)
    failed.outcome.reason = "env_error"
    episodes = [_reporting("a", moves=1.0), _reporting("a", moves=4.0, **{"tüten": -2.5}), failed, _episode("b", 1.0)]
    for episode in [*episodes, _reporting("c", moves=7.5)]:
        metrics.update(episode)
    table = metrics.compute()
    assert {k: v for k, v in table["a"].items() if k not in COLUMNS} == {"metrics/moves": 2.5, "metrics/tüten": -2.5}
    assert set(table["b"]) == set(COLUMNS)
    assert table["mean"]["metrics/moves"] == 5.0  # over the tasks that have it
    assert table["mean"]["metrics/tüten"] == -2.5
    console = Console(record=True, width=200)
    console.print(score_table(*score_cells(table, "task", episode_cells), "with metrics"))
    rows = [line.split("\u2502") for line in console.export_text().splitlines() if "\u2502" in line]
    assert [[cell.strip() for cell in row[-3:-1]] for row in rows] == [
        ["2.5", "-2.5"], ["-", "-"], ["7.5", "-"], ["5", "-2.5"],
    ]  # fmt: skip


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'b'"):
        EpisodeMetrics(["a"]).update(_episode("b", 0.0))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_played_is_an_empty_table() -> None:
    assert EpisodeMetrics(["a"]).compute() == {}


def test_pass_at_k_equals_counting_all_choices() -> None:
    from itertools import combinations

    for n in range(1, 7):
        for c in range(n + 1):
            answers = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                choices = list(combinations(answers, k))
                expected = sum(any(choice) for choice in choices) / len(choices)
                found = pass_at_k(torch.tensor([c]), torch.tensor([n]), k)
                assert float(found) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="pass@3 needs at least 3 answers"):
        pass_at_k(torch.tensor([1]), torch.tensor([2]), 3)


def test_answers_by_benchmark_with_intervals() -> None:
    metrics = AnswerMetrics(["aime", "math", "none"])
    for right in (0, 2, 4, 4):
        metrics.update("aime", right, 4)
    for right in (1, 0):
        metrics.update("math", right, 1)
    table = metrics.compute()
    assert list(table) == ["aime", "math", "mean"]
    assert table["aime"]["average"] == pytest.approx(10 / 16) and table["aime"]["k"] == 4
    assert table["aime"]["pass"] == pytest.approx(3 / 4) and table["math"]["pass"] == pytest.approx(1 / 2)
    assert table["mean"]["average"] == pytest.approx((10 / 16 + 1 / 2) / 2) and table["mean"]["problems"] == 6
    assert 0 <= table["aime"]["low"] < 10 / 16 < table["aime"]["high"] <= 1
    assert AnswerMetrics(["aime"]).compute() == {}
    with pytest.raises(ValueError, match="unknown benchmark 'amc'"):
        metrics.update("amc", 1, 1)


@pytest.mark.parametrize(
    ("right", "answers", "expected"),
    [
        ([0] * 20, 1, (0.0, 0.1611)),
        ([1] * 20, 1, (0.8389, 1.0)),
        ([0] * 20, 4, (0.0, 0.1611)),  # 4 answers of a problem are not 4 problems
        ([2] * 4, 4, (0.1500, 0.8500)),
        ([1] + [0] * 28, 1, (0.0061, 0.1718)),
        ([1], 3, (0.0253, 0.9058)),
    ],
)
def test_intervals_where_a_bootstrap_has_no_width(
    right: list[int], answers: int, expected: tuple[float, float]
) -> None:
    metrics = AnswerMetrics(["aime"])
    for number in right:
        metrics.update("aime", number, answers)
    row = metrics.compute()["aime"]
    assert (row["low"], row["high"]) == pytest.approx(expected, abs=5e-5)
    assert row["low"] <= row["average"] <= row["high"] and row["high"] - row["low"] > 0.1


def test_cells_of_answers() -> None:
    row = {"problems": 30.0, "k": 4.0, "average": 0.25, "low": 0.125, "high": 0.5, "pass": 0.75}
    expected = {"problems": "30", "k": "4", "avg@k": "25.0%", "95% interval": "12.5% .. 50.0%", "pass@k": "75.0%"}
    assert answer_cells(row) == expected
    nothing = answer_cells(dict.fromkeys(row, math.nan))
    assert list(nothing) == list(expected) and set(nothing.values()) == {"-"}
