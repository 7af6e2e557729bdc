"""The record: what goes in comes out, and what is wrong is named."""

import copy
import json
import pickle
from typing import Any

import pytest

from lit_rft.episodes import Achieved, Episode, EpisodeError, Outcome, Step, Subgoal

WITH_DEFAULT = ("schema", "step_limit", "meta", "extra")


def boil() -> Episode:
    steps = [
        Step("open door", "The door is now open.", 0.0, 0.0, True),
        Step("go kitchen", "You move to the kitchen.", 0.25, 0.25, True, [Achieved("room:kitchen", "kitchen")]),
        Step("focus on wateŕ", "No known action matches that input.", 0.0, 0.25, False),
        Step("focus on water", "You focus on the water.", 0.75, 1.0, True, [Achieved("prog:0", "focus on water")]),
    ]
    return Episode(
        id="boil/0",
        env="scienceworld",
        env_version="1.2.3",
        task="boil",
        split="train",
        source={"kind": "gold"},
        task_description="Your task is to boil water.",
        initial_observation="You are in the hallway.\n\tYou see:\n\ta door",
        steps=steps,
        subgoals=[Subgoal(0, 2, "go to kitchen", True, "events"), Subgoal(2, 4, "focus on water", True, "events")],
        outcome=Outcome(1.0, True, True, False, "goal"),
        step_limit=50,
        meta={"variation": 0},
    )


def test_dictionary_is_the_published_schema_and_comes_back_equal() -> None:
    data = boil().to_dict()
    assert next(iter(data)) == "schema"
    assert data["schema"] == 2
    assert data["steps"][1]["achieved"] == [{"key": "room:kitchen", "text": "kitchen"}]
    subgoal = {"start": 0, "end": 2, "goal": "go to kitchen", "completed": True, "annotator": "events"}
    assert data["subgoals"][0] == subgoal
    again = Episode.from_dict(json.loads(json.dumps(data)))
    assert again == boil()
    assert isinstance(again.steps[1].achieved[0], Achieved)


def test_fields_with_a_default_may_be_missing() -> None:
    data = boil().to_dict()
    for name in WITH_DEFAULT:
        del data[name]
    assert Episode.from_dict(data).step_limit == 0


def test_an_episode_without_steps_or_annotation_is_valid() -> None:
    episode = boil()
    episode.subgoals = []
    episode.validate()
    episode.steps, episode.outcome = [], Outcome(0.0, False, False, True, "env_error")
    episode.validate()


def test_rewards_and_scores_are_the_environments_own() -> None:
    """Dense, negative and unbounded rewards; a score that is not their sum, and starts above zero."""
    episode = boil()
    for step, reward, score in zip(episode.steps, (-1.0, 12.5, -1.0, 100.0), (0.25, -3.0, 40.0, 250.0), strict=True):
        step.reward, step.score = reward, score
    episode.outcome.score = 250.0
    episode.validate()
    assert episode.total_reward == 110.5


WRONG: list[tuple[str, Any, str]] = [
    ("id", "", "id"),
    ("id", 3, "id"),
    ("id", "\ud800", "id"),
    ("schema", 1, "schema"),
    ("meta", "easy", "meta"),
    ("steps.0.reward", 10**400, "steps[0].reward"),
    ("step_limit", -1, "step_limit"),
    ("source", {}, "source.kind"),
    ("source", "gold", "source"),
    ("steps", None, "steps"),
    ("steps.1", "go kitchen", "steps[1]"),
    ("steps.1.reward", "0.25", "steps[1].reward"),
    ("steps.1.reward", float("nan"), "steps[1].reward"),
    ("steps.1.score", float("inf"), "steps[1].score"),
    ("steps.1.valid", 1, "steps[1].valid"),
    ("steps.1.achieved.0.text", None, "steps[1].achieved[0].text"),
    ("steps.1.colour", "red", "steps[1].colour"),
    ("outcome.score", 0.5, "outcome.score"),
    ("outcome.truncated", True, "outcome.truncated"),
    ("subgoals.0.start", 1, "subgoals[0].start"),
    ("subgoals.0.end", 0, "subgoals[0].end"),
    ("subgoals.0.end", 1, "subgoals[1].start"),
    ("subgoals.0.end", 3, "subgoals[1].start"),
    ("subgoals.1.end", 3, "subgoals[1].end"),
    ("subgoals.1.end", 5, "subgoals[1].end"),
    ("subgoals.1.goal", "  ", "subgoals[1].goal"),
]


@pytest.mark.parametrize(("place", "value", "field"), WRONG, ids=[f"{place}={value!a}" for place, value, _ in WRONG])
def test_a_wrong_value_is_refused_by_its_field(place: str, value: Any, field: str) -> None:
    data: Any = boil().to_dict()
    target = data
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    for parent in parents:
        target = target[parent]
    target[last] = value
    with pytest.raises(EpisodeError) as caught:
        Episode.from_dict(data)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize("name", [name for name in boil().to_dict() if name not in WITH_DEFAULT])
def test_a_missing_field_is_named(name: str) -> None:
    data = boil().to_dict()
    del data[name]
    with pytest.raises(EpisodeError, match=f"^{name}: missing"):
        Episode.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "episode", 3])
def test_what_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(EpisodeError, match="expected an object"):
        Episode.from_dict(data)


def test_validation_also_covers_records_made_in_python() -> None:
    episode = boil()
    episode.steps[0] = {"action": "wait"}  # type: ignore[call-overload]
    with pytest.raises(EpisodeError, match=r"^steps\[0\]: "):
        episode.validate()


def test_the_error_survives_a_process_boundary() -> None:
    error = EpisodeError("expected 1, got 2", "schema", "a.jsonl", 3)
    again = pickle.loads(pickle.dumps(copy.copy(error)))
    assert str(again) == str(error) == "a.jsonl:3: schema: expected 1, got 2"
    assert (again.field, again.path, again.line) == ("schema", "a.jsonl", 3)
