"""Intrinsic rewards: what the environment reported, not what the policy claims."""

import dataclasses

import pytest

from lit_rft.episodes import Achieved, Episode, Step, Subgoal, annotate_events, apply_annotator, intrinsic_rewards
from lit_rft.testing.tiny import make_episode


def played(*subgoals: Subgoal) -> Episode:
    """Four steps: into the kitchen, a condition met, nothing, into the hall and another condition."""
    kitchen, hall = Achieved("room:kitchen", "go to kitchen"), Achieved("room:hall", "go to hall")
    focused, moved = Achieved("prog:0", "focus on a plant"), Achieved("opt:3", "move it")
    reports = [[kitchen], [focused], [], [hall, moved]]
    steps = [Step(f"act {i}", "o", 0.0, 0.0, True, report) for i, report in enumerate(reports)]
    outcome = dataclasses.replace(make_episode().outcome, score=0.0, success=False, terminated=False, truncated=True)
    return dataclasses.replace(make_episode(), steps=steps, subgoals=list(subgoals), outcome=outcome)


def by_policy(start: int, end: int, goal: str, claimed: bool = True) -> Subgoal:
    return Subgoal(start, end, goal, claimed, "policy")


@pytest.mark.parametrize(
    ("subgoals", "rewards"),
    [
        ([by_policy(0, 4, "go to kitchen")], [1, 0, 0, 0]),
        ([by_policy(0, 4, "go to kitchen", claimed=False)], [1, 0, 0, 0]),  # the claim does not count ...
        ([by_policy(0, 4, "go to cellar", claimed=True)], [0, 0, 0, 0]),  # ... either way
        ([by_policy(0, 1, "go to kitchen"), by_policy(1, 4, "go to kitchen")], [1, 0, 0, 0]),  # reported before it
        ([by_policy(0, 4, "go to kitchen and focus on a plant")], [0, 1, 0, 0]),
        ([by_policy(0, 4, "focus on a plant and go to kitchen")], [0, 1, 0, 0]),
        ([by_policy(0, 2, "go to hall"), by_policy(2, 4, "move it and go to hall")], [0, 0, 0, 1]),
        ([by_policy(0, 4, "go")], [0, 0, 0, 0]),
        ([by_policy(i, i + 1, "go to hall") for i in range(4)], [0, 0, 0, 1]),  # subgoals of one step
    ],
)
def test_a_policys_subgoal_is_done_when_the_environment_says_so(subgoals: list[Subgoal], rewards: list[float]) -> None:
    assert intrinsic_rewards(played(*subgoals)) == rewards


def test_an_annotators_subgoals_end_with_their_reward() -> None:
    episode = played(Subgoal(0, 3, "wander", True, "someone"), Subgoal(3, 4, "rest", False, "someone"))
    assert intrinsic_rewards(episode) == [0, 0, 1, 0]
    annotated = apply_annotator(played(), annotate_events, "events")
    ends = [subgoal.end - 1 for subgoal in annotated.subgoals if subgoal.completed]
    assert [i for i, reward in enumerate(intrinsic_rewards(annotated)) if reward] == ends


def test_what_completes_a_subgoal_online_is_what_cut_it_out_of_the_episode() -> None:
    """The events' goals, given to a policy that acts in the same way, are reached at the same steps."""
    annotated = apply_annotator(played(), annotate_events, "events")
    as_policy = [dataclasses.replace(subgoal, annotator="policy") for subgoal in annotated.subgoals]
    assert intrinsic_rewards(played(*as_policy)) == intrinsic_rewards(annotated)


def test_an_episode_without_subgoals_is_refused() -> None:
    with pytest.raises(ValueError, match="has no subgoals: annotate it first"):
        intrinsic_rewards(played())
