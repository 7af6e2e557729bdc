"""Subgoals from events: rules on hand-made episodes, properties on random ones."""

import random
from typing import Any

import pytest

from lit_rft.envs.scienceworld.subgoals import annotate_scienceworld, rank
from lit_rft.episodes import Achieved, Episode, EpisodeError, Outcome, Step
from lit_rft.episodes.subgoals import UNFINISHED_GOAL, annotate_events, apply_annotator, event_goal


def play(achieved: list[list[Achieved]], outcome: Outcome | None = None) -> Episode:
    """An episode whose steps achieved these conditions; not solved, cut by the step limit, unless told otherwise."""
    return Episode(
        id="e",
        env="scienceworld",
        env_version="1.2.3",
        task="boil",
        split="train",
        source={"kind": "gold"},
        task_description="boil water",
        initial_observation="a room",
        steps=[Step(f"act {i}", "o", 0.0, 0.0, True, conditions) for i, conditions in enumerate(achieved)],
        subgoals=[],
        outcome=outcome or Outcome(0.0, False, False, True, "step_limit"),
    )


def prog(text: str) -> Achieved:
    return Achieved("prog:0", text)


def room(name: str) -> Achieved:
    return Achieved(f"room:{name}", f"go to {name}")


def test_cuts_fall_after_the_steps_that_achieve_something() -> None:
    episode = play([[], [room("kitchen")], [], [], [prog("focus on water")]])
    assert annotate_events(episode) == [(0, 2, "go to kitchen"), (2, 5, "focus on water")]


def test_a_single_step_joins_the_segment_after_it() -> None:
    episode = play([[room("hall")], [room("kitchen")], [], [prog("focus on water")]])
    assert annotate_events(episode) == [(0, 2, "go to hall and go to kitchen"), (2, 4, "focus on water")]
    episode = play([[prog("focus")], [Achieved("opt:1", "pick up")], [], [room("kitchen")]])
    assert annotate_events(episode) == [(0, 2, "focus and pick up"), (2, 4, "go to kitchen")]


def test_a_sequential_condition_of_a_merged_step_stays_in_the_goal() -> None:
    optional = [Achieved(f"opt:{i}", f"option {i}") for i in range(3)]
    episode = play([[optional[0]], [prog("focus")], [], optional[1:]])
    assert [goal for _, _, goal in annotate_scienceworld(episode)] == ["option 0 and focus", "option 1 and option 2"]
    episode = play([[prog("focus")], [], optional])
    assert [goal for _, _, goal in annotate_scienceworld(episode)] == ["focus and option 0"]


def test_a_room_hides_the_optional_conditions_that_come_with_it() -> None:
    episode = play([[], [Achieved("opt:0", "be in same location as water"), room("kitchen")]])
    assert annotate_scienceworld(episode) == [(0, 2, "go to kitchen")]


def test_a_single_step_at_the_end_stays_alone() -> None:
    episode = play([[], [room("kitchen")], [prog("focus on water")]])
    assert annotate_events(episode) == [(0, 2, "go to kitchen"), (2, 3, "focus on water")]
    assert annotate_events(play([[prog("focus on water")]])) == [(0, 1, "focus on water")]


def test_steps_after_the_last_event_are_one_unfinished_segment() -> None:
    episode = apply_annotator(play([[], [room("kitchen")], []]), annotate_events, "events")
    assert [(s.end, s.goal, s.completed) for s in episode.subgoals] == [
        (2, "go to kitchen", True),
        (3, UNFINISHED_GOAL, False),
    ]
    assert annotate_events(play([[], []])) == [(0, 2, UNFINISHED_GOAL)]
    assert annotate_events(play([])) == []


@pytest.mark.parametrize(
    ("achieved", "goal"),
    [
        ([room("kitchen")], "go to kitchen"),
        ([Achieved("opt:3", "pick it up"), prog("focus on water")], "pick it up and focus on water"),
        ([Achieved("opt:1", "open door"), room("hall"), prog("focus on it")], "go to hall and focus on it"),
        ([Achieved("opt:1", "a"), Achieved("opt:2", "b"), Achieved("opt:3", "c")], "a and b"),
        ([prog("a"), Achieved("prog:1", "b"), Achieved("prog:2", "c")], "a and b"),
        ([Achieved("opt:0", "move it"), prog("move it")], "move it"),
        ([prog("  move it ")], "move it"),
        ([Achieved("holds:apple", "hold the apple")], "hold the apple"),
    ],
)
def test_a_goal_is_at_most_two_descriptions_sequential_ones_first(achieved: list[Achieved], goal: str) -> None:
    assert event_goal(achieved, rank) == goal


def test_without_ranks_a_goal_names_what_was_achieved_first() -> None:
    achieved = [Achieved("opt:3", "pick it up"), room("hall"), prog("focus on water")]
    assert event_goal(achieved) == "pick it up and go to hall"
    assert [goal for _, _, goal in annotate_events(play([[], achieved]))] == ["pick it up and go to hall"]
    assert event_goal([Achieved("has apple", "")]) == "has apple"


@pytest.mark.parametrize(
    ("outcome", "completed"),
    [
        (Outcome(1.0, True, True, False, "goal"), True),
        (Outcome(0.0, False, True, False, "failed"), False),
        (Outcome(0.0, False, False, True, "step_limit"), True),
    ],
)
def test_the_last_subgoal_is_completed_unless_the_episode_failed(outcome: Outcome, completed: bool) -> None:
    episode = play([[], [prog("focus on it")]], outcome)
    episode.steps[-1].reward = episode.steps[-1].score = outcome.score
    assert apply_annotator(episode, annotate_events, "events").subgoals[-1].completed is completed


def test_a_room_that_is_entered_again_is_no_new_subgoal() -> None:
    episode = play([[], [room("kitchen")], [], [room("hall")], [], [room("kitchen")], [], [prog("focus")]])
    assert [(start, end) for start, end, _ in annotate_events(episode)] == [(0, 2), (2, 4), (4, 8)]


def test_random_events_are_covered_without_gaps_by_segments_that_end_at_events() -> None:
    rng = random.Random(0)
    conditions = [Achieved(f"{prefix}c{i}", f"c{i}") for i in range(5) for prefix in ("prog:", "opt:", "room:")]
    for _ in range(500):
        density, length = rng.random(), rng.randint(0, 60)
        steps = [rng.sample(conditions, rng.randint(1, 3)) if rng.random() < density else [] for _ in range(length)]
        subgoals = apply_annotator(play(steps), annotate_events, "events").subgoals  # validates, too
        covered = [i for subgoal in subgoals for i in range(subgoal.start, subgoal.end)]
        assert covered == list(range(length))
        seen: set[str] = set()
        events = []  # whether a step achieved what none had achieved before
        for achieved in steps:
            keys = {condition.key for condition in achieved}
            events.append(bool(keys - seen))
            seen |= keys
        last_event = max((i for i, event in enumerate(events) if event), default=-1)
        for subgoal in subgoals:
            if subgoal.end <= last_event + 1:
                assert subgoal.completed
                assert events[subgoal.end - 1]
                assert not any(events[subgoal.start + 1 : subgoal.end - 1])  # its first step may be an event, too
                assert subgoal.end - subgoal.start > 1 or subgoal.end == last_event + 1
                assert 1 <= subgoal.goal.count(" and ") + 1 <= 2
            else:
                assert (subgoal.completed, subgoal.goal, subgoal.end) == (False, UNFINISHED_GOAL, length)


def test_a_users_annotator_is_taken_and_the_episode_left_alone() -> None:
    episode = play([[], [], []])
    annotated = apply_annotator(episode, lambda e: [(0, 1, "start"), (1, len(e.steps), "finish")], "mine")
    assert [(s.start, s.end, s.goal, s.annotator) for s in annotated.subgoals] == [
        (0, 1, "start", "mine"),
        (1, 3, "finish", "mine"),
    ]
    assert episode.subgoals == []


def test_an_annotator_may_say_which_subgoals_were_completed() -> None:
    """Also the last one's, in place of the rule for it."""
    segments = [(0, 1, "a", False), (1, 2, "b", True), (2, 3, "c", True)]
    subgoals = apply_annotator(play([[], [], []]), lambda episode: segments, "mine").subgoals
    assert [subgoal.completed for subgoal in subgoals] == [False, True, True]
    mixed: list[Any] = [(0, 1, "a"), (1, 2, "b", False), (2, 3, "c")]
    subgoals = apply_annotator(play([[], [], []]), lambda episode: mixed, "mine").subgoals
    assert [subgoal.completed for subgoal in subgoals] == [True, False, False]


@pytest.mark.parametrize(
    ("segments", "field"),
    [
        ([], "subgoals"),
        ([(0, 3, "a", "yes")], "subgoals[0].completed"),
        ([(0, 3, "a", True, 1)], "subgoals[0]"),
        ([(0, 2, "a")], "subgoals[0].end"),
        ([(0, 2, "a"), (1, 3, "b")], "subgoals[1].start"),
        ([(0, 1, "a"), (2, 3, "b")], "subgoals[1].start"),
        ([(0, 4, "a")], "subgoals[0].end"),
        ([(0, 0, "a"), (0, 3, "b")], "subgoals[0].end"),
        ([(0, 3, "")], "subgoals[0].goal"),
        ([(0, 3, None)], "subgoals[0].goal"),
        ([(0, 3)], "subgoals[0]"),
        ([(0, "3", "a")], "subgoals[0].end"),
        ([None], "subgoals[0]"),
    ],
)
def test_an_annotator_that_does_not_cover_every_step_is_named(segments: Any, field: str) -> None:
    with pytest.raises(EpisodeError, match="annotator 'mine'") as caught:
        apply_annotator(play([[], [], []]), lambda episode: segments, "mine")
    assert caught.value.field == field


def test_an_episode_without_steps_has_no_subgoals() -> None:
    """Such as one whose first prompt was longer than the context: annotators may look at its last step."""
    episode = play([], Outcome(0.0, False, False, True, "context_full"))
    for annotator in (annotate_events, annotate_scienceworld, lambda episode: [(0, len(episode.steps), "all")]):
        assert apply_annotator(episode, annotator, "someone").subgoals == []
