"""Failures for negative-aware training: which episodes are, repetitions, and the number per problem."""

import dataclasses
from typing import Any

import pytest

from lit_rft.episodes import DistinctFailures, Episode
from lit_rft.testing.tiny import make_episode


def attempt(name: str, score: float, actions: str = "ab", problem: int = 0, **outcome: Any) -> Episode:
    episode = make_episode(0, len(actions))
    episode.id, episode.meta = name, {"variation": problem}
    episode.steps = [dataclasses.replace(s, action=a) for s, a in zip(episode.steps, actions, strict=True)]
    episode.steps[-1].score = score
    episode.outcome = dataclasses.replace(episode.outcome, score=score, success=score >= 1, **outcome)
    return episode


def chosen(episodes: list[Episode], **settings: Any) -> list[str]:
    return [episode.id for episode in DistinctFailures(**settings)(episodes)]


def test_successes_and_failed_environments_are_left_out_and_unfinished_episodes_are_not() -> None:
    unfinished = {"terminated": False, "truncated": True, "reason": "step_limit"}
    episodes = [
        attempt("won", 1.0), attempt("partial", 0.7, "ac"), attempt("negative", -1.0, "ad"),
        attempt("unfinished", 0.0, "ae", **unfinished), attempt("crashed", 0.0, "af", reason="env_error"),
    ]  # fmt: skip
    assert chosen(episodes) == ["partial", "negative", "unfinished"]
    assert chosen(episodes, success_score=0.5) == ["negative", "unfinished"]


def test_each_sequence_of_actions_counts_once_per_problem() -> None:
    episodes = [attempt("a", 0.0), attempt("b", 0.0), attempt("c", 0.5, "ba"), attempt("d", 0.0, problem=1)]
    assert chosen(episodes) == ["a", "c", "d"]


@pytest.mark.parametrize(("limit", "expected"), [(1, ["0", "other"]), (2, ["0", "1", "other"]), (None, None)])
def test_the_number_per_problem_is_limited(limit: int | None, expected: list[str] | None) -> None:
    episodes = [attempt(f"{n}", 0.0, f"a{n}") for n in range(5)] + [attempt("other", 0.0, problem=1)]
    assert chosen(episodes, per_problem=limit) == (expected or [episode.id for episode in episodes])


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="per_problem must be >= 1 or null, got 0"):
        DistinctFailures(per_problem=0)
