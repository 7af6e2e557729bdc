"""Preference pairs: who is chosen, what is dropped, where a rejected episode is cut."""

from dataclasses import replace
from typing import Any

import pytest

from lit_rft.agents import recorded_thoughts
from lit_rft.episodes import Episode, cut_episode, pair_with_experts
from lit_rft.testing import make_episode


def attempt(problem: int, score: float, num_steps: int = 3, **changes: Any) -> Episode:
    episode = make_episode(problem, num_steps)
    episode.steps[-1] = replace(episode.steps[-1], score=score)
    episode = replace(episode, meta={"variation": problem}, outcome=replace(episode.outcome, score=score))
    return replace(episode, **changes)


EXPERTS = [attempt(n, 1.0) for n in range(4)]


def test_the_higher_score_is_chosen_and_ties_are_dropped() -> None:
    explored = [attempt(0, 0.4), attempt(1, 1.0), attempt(2, 1.5), attempt(3, 0.99), attempt(9, 0.0)]
    report = pair_with_experts(EXPERTS, explored)
    assert (report.won, report.tied, report.lost, report.unmatched, report.surplus) == (1, 1, 2, 1, 0)
    assert [pair.chosen.outcome.score for pair in report.pairs] == [1.0, 1.5, 1.0]
    assert [pair.rejected.outcome.score for pair in report.pairs] == [0.4, 1.0, 0.99]
    assert [pair.chosen.meta == pair.rejected.meta for pair in report.pairs] == [True] * 3
    assert report.pairs[0].margin == pytest.approx(0.6)


def test_scores_within_the_margin_are_tied() -> None:
    explored = [attempt(0, 0.4), attempt(1, 0.9), attempt(2, 1.1)]
    report = pair_with_experts(EXPERTS, explored, margin=0.15)
    assert (report.won, report.tied, report.lost) == (0, 2, 1)


@pytest.mark.parametrize(("extra", "lengths"), [(5, [8, 4]), (0, [3, 3]), (None, [12, 4])])
def test_rejected_attempts_are_cut_some_steps_after_the_experts_length(extra: Any, lengths: list[int]) -> None:
    explored = [attempt(0, 0.2, 12), attempt(1, 0.3, 4), attempt(2, 3.0, 20)]
    report = pair_with_experts(EXPERTS, explored, max_extra_steps=extra)
    assert [len(pair.rejected.steps) for pair in report.pairs] == [*lengths, 3]
    assert len(report.pairs[2].chosen.steps) == 20  # what is chosen stays whole
    for pair in report.pairs:
        pair.rejected.validate()
    assert len(explored[0].steps) == 12


def test_a_cut_episode_is_one_that_was_truncated_there() -> None:
    episode = make_episode(0, 6)
    for number in range(1, 6):
        cut = cut_episode(episode, number)
        cut.validate()
        assert cut.steps == episode.steps[:number] and cut.outcome.score == episode.steps[number - 1].score
        assert cut.outcome.truncated and not cut.outcome.terminated and not cut.outcome.success
        assert sum(goal.end - goal.start for goal in cut.subgoals) == number
        whole = [goal for goal in episode.subgoals if goal.end <= number]
        assert cut.subgoals[: len(whole)] == whole and all(not goal.completed for goal in cut.subgoals[len(whole) :])
    assert cut_episode(episode, 6) is episode
    with pytest.raises(ValueError, match="num_steps must be >= 1, got 0"):
        cut_episode(episode, 0)


def test_a_cut_episode_keeps_the_thoughts_of_its_steps() -> None:
    """Agents need one for each step: with more of them, a pair could not be rendered."""
    thoughts = [f"Thought {number}." for number in range(6)]
    cut = cut_episode(replace(make_episode(0, 6), extra={"thoughts": thoughts, "other": 1}), 4)
    assert cut.extra == {"thoughts": thoughts[:4], "other": 1} and len(thoughts) == 6
    assert recorded_thoughts(cut) == thoughts[:4]


def test_failed_and_empty_attempts_make_no_pair() -> None:
    failed = attempt(0, 0.1)
    failed = replace(failed, outcome=replace(failed.outcome, reason="env_error"))
    report = pair_with_experts(EXPERTS, [failed, attempt(1, 0.0, steps=[], subgoals=[])])
    assert report.pairs == [] and report.unmatched == 2


def test_pairs_of_a_problem_are_limited() -> None:
    explored = [attempt(0, 0.1), attempt(0, 0.2), attempt(1, 0.3), attempt(0, 0.4)]
    for limit, scores, surplus in ((1, [0.1, 0.3], 2), (2, [0.1, 0.2, 0.3], 1), (None, [0.1, 0.2, 0.3, 0.4], 0)):
        report = pair_with_experts(EXPERTS, explored, pairs_per_problem=limit)
        assert [pair.rejected.outcome.score for pair in report.pairs] == scores and report.surplus == surplus


def test_the_best_and_then_the_shortest_expert_counts() -> None:
    experts = [attempt(0, 0.5, 2), attempt(0, 1.0, 9), attempt(0, 1.0, 4)]
    (pair,) = pair_with_experts(experts, [attempt(0, 0.7)]).pairs
    assert pair.chosen is experts[2]


def test_problems_are_told_apart_by_environment_task_split_and_meta() -> None:
    for change in ({"env": "other"}, {"task": "other"}, {"split": "other"}, {"meta": {"variation": 7}}):
        assert pair_with_experts(EXPERTS, [attempt(0, 0.1, **change)]).unmatched == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"margin": -0.1}, "margin must be >= 0, got -0.1"),
        ({"max_extra_steps": -1}, "max_extra_steps must be >= 0 or null, got -1"),
        ({"pairs_per_problem": 0}, "pairs_per_problem must be >= 1 or null, got 0"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_with_experts(EXPERTS, [], **setting)
