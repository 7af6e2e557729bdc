"""Generated households: deterministic, solvable, not solved at the start, and of other rooms in each split."""

from __future__ import annotations

import dataclasses

import pytest

from lit_rft.envs.alfworld import Layout, generate, solve
from lit_rft.envs.alfworld.games import TASKS, TREATMENTS, Household, instance_ids, number_names
from lit_rft.envs.alfworld.generator import SPLITS, scenes
from lit_rft.envs.alfworld.resources import Resources, load_resources
from lit_rft.envs.alfworld.world import World

LAYOUTS = [Layout(), Layout(max_per_type=1, max_instances=1), Layout(max_per_type=40, closed=0.7), Layout(closed=0.0)]


def check(household: Household, task: str) -> None:
    """What holds of every generated game."""
    world, goal = World(household), household.goal
    assert goal.task == task
    assert not world.won()
    names = [thing.name for thing in household.things] + [r.name for r in household.receptacles]
    assert len(set(names)) == len(names)
    assert len({r.location for r in household.receptacles}) == len(household.receptacles)
    accepts = {r.name: r.accepts for r in household.receptacles}
    for thing in household.things:
        assert thing.place is not None and (thing.type in accepts[thing.place] or "toggleable" in thing.flags)
        assert not (goal.receptacle and thing.type == goal.object and thing.place.startswith(f"{goal.receptacle} "))
    if task in TREATMENTS:
        assert goal.receptacle != TREATMENTS[task][1]
    actions, won = solve(household)
    assert won, actions
    assert len(actions) >= 3
    for words in (goal.object, goal.receptacle, goal.lamp):
        assert words in household.description


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_games_are_solvable_and_not_solved(rooms: Resources, task: str, layout: Layout) -> None:
    for split in SPLITS:
        for seed in range(10):
            check(generate(task, split, seed, layout, rooms), task)


@pytest.mark.parametrize("task", TASKS)
def test_games_of_the_real_floor_plans_are_solvable(extra: None, task: str) -> None:
    for split in SPLITS:
        for seed in range(8):
            check(generate(task, split, seed, Layout(), load_resources()), task)


def test_the_same_seed_gives_the_same_game(rooms: Resources) -> None:
    games = [generate(TASKS[0], "train", seed, Layout(), rooms) for seed in range(20)]
    assert games == [generate(TASKS[0], "train", seed, Layout(), rooms) for seed in range(20)]
    assert len({str(game) for game in games}) == 20
    assert games[0] != generate(TASKS[0], "dev", 0, Layout(), rooms)


def test_splits_share_no_floor_plan(rooms: Resources) -> None:
    assert [scenes(split, rooms) for split in SPLITS] == [[7, 307], [1, 301], [2, 302]]
    with pytest.raises(ValueError, match="splits train, dev, test, got 'valid_seen'"):
        scenes("valid_seen", rooms)
    for split in SPLITS:
        played = {generate(TASKS[0], split, seed, Layout(), rooms).scene for seed in range(20)}
        assert played == set(scenes(split, rooms))


def test_splits_of_the_real_floor_plans(extra: None) -> None:
    train, dev, test = (scenes(split, load_resources()) for split in SPLITS)
    assert (len(train), len(dev), len(test)) == (96, 12, 12)
    assert not set(train) & {*dev, *test} and not set(dev) & set(test)
    assert {1, 201, 301, 401} <= set(dev) and {6, 206, 306, 406} <= set(test)


def test_the_layout_is_kept(rooms: Resources) -> None:
    def generated(**settings: float) -> list[Household]:
        return [generate(TASKS[2], "train", seed, Layout(**settings), rooms) for seed in range(30)]  # type: ignore[arg-type]

    def share_closed(games: list[Household]) -> float:
        places = [thing.place for game in games for thing in game.things]
        return sum(place.startswith(("cabinet", "fridge", "microwave")) for place in places if place) / len(places)

    count = {r.name for game in generated(max_per_type=3) for r in game.receptacles if r.type == "cabinet"}
    assert count == {"cabinet 1", "cabinet 2", "cabinet 3"}
    assert max(len(game.things) for game in generated(max_instances=1)) == 4
    # knives have open places only, and the goal's receptacle is no place for its object
    assert share_closed(generated(closed=0.0)) < 0.1 < 0.3 < share_closed(generated(closed=1.0))
    for name, value in (("max_per_type", 0), ("max_instances", 0), ("closed", 1.5)):
        with pytest.raises(ValueError, match=name):
            Layout(**{name: value})  # type: ignore[arg-type]


def test_a_task_that_no_floor_plan_allows_is_refused(rooms: Resources) -> None:
    without = {n: dataclasses.replace(plan, objects=()) for n, plan in rooms.floor_plans.items()}
    with pytest.raises(RuntimeError, match="no floor plan of the split 'dev' has what the task"):
        generate(TASKS[0], "dev", 0, Layout(), dataclasses.replace(rooms, floor_plans=without))
    with pytest.raises(ValueError, match="unknown task 'pick'; expected one of pick_and_place_simple"):
        generate("pick", "dev", 0, Layout(), rooms)


def test_names_are_numbered_downwards_in_the_order_of_ids() -> None:
    assert list(instance_ids("Cabinet", 2)) == [("cabinet_bar_01", "cabinet 2"), ("cabinet_bar_02", "cabinet 1")]
    assert list(instance_ids("SinkBasin", 1)) == [("sink_bar_01_bar_sinkbasin", "sinkbasin 1")]
    ids = ["mug_bar_2", "mug_bar_10", "sink_bar_1_bar_sinkbasin", "agent1"]
    expected = {"mug_bar_10": "mug 2", "mug_bar_2": "mug 1", "sink_bar_1_bar_sinkbasin": "sinkbasin 1"}
    assert number_names(ids) == expected
