"""The rules of a household in plain Python."""

from __future__ import annotations

import pytest

from lit_rft.envs.alfworld.games import Goal, Household, Receptacle, Thing
from lit_rft.envs.alfworld.world import NOTHING_HAPPENS, World

HOT_EGG = Goal("pick_heat_then_place_in_recep", "egg", "countertop")


def household(goal: Goal = HOT_EGG) -> Household:
    """A kitchen with an egg in the fridge, and a desk with a lamp."""
    food, any_thing = frozenset({"egg", "apple"}), frozenset({"egg", "apple", "knife"})
    receptacles = (
        Receptacle("countertop_bar_01", "countertop 1", "countertop", False, "loc1", any_thing),
        Receptacle("desk_bar_01", "desk 1", "desk", False, "loc2", frozenset({"knife"})),
        Receptacle("fridge_bar_01", "fridge 1", "fridge", True, "loc3", food),
        Receptacle("microwave_bar_01", "microwave 1", "microwave", True, "loc4", food),
        Receptacle("sink_bar_01_bar_sinkbasin", "sinkbasin 1", "sinkbasin", False, "loc5", any_thing),
    )
    eatable = frozenset({"pickupable", "cleanable", "heatable", "coolable"})
    things = (
        Thing("apple_bar_01", "apple 1", "apple", "countertop 1", eatable | {"sliceable"}),
        Thing("desklamp_bar_01", "desklamp 1", "desklamp", "desk 1", frozenset({"toggleable"})),
        Thing("egg_bar_01", "egg 2", "egg", "countertop 1" if goal.receptacle == "fridge" else "fridge 1", eatable),
        Thing("egg_bar_02", "egg 1", "egg", "fridge 1" if goal.receptacle != "fridge" else "sinkbasin 1", eatable),
        Thing("knife_bar_01", "knife 1", "knife", "countertop 1", frozenset({"pickupable", "cleanable"})),
    )
    return Household(1, goal, "heat some egg and put it in countertop", receptacles, things)


def play(world: World, *commands: str) -> list[str]:
    return [world.step(command) for command in commands]


def test_a_game_from_start_to_goal() -> None:
    world = World(household())
    assert world.intro() == (
        "You are in the middle of a room. Looking quickly around you, you see a countertop 1, a desk 1, a fridge 1, "
        "a microwave 1, and a sinkbasin 1."
    )
    assert play(world, "look") == ["You are in the middle of a room. Looking quickly around you, you see nothing."]
    assert play(
        world, "go to fridge 1", "open fridge 1", "take egg 1 from fridge 1", "inventory", "close fridge 1"
    ) == [
        "You arrive at fridge 1. The fridge 1 is closed.",
        "You open the fridge 1. The fridge 1 is open. In it, you see a egg 2, and a egg 1.",
        "You pick up the egg 1 from the fridge 1.",
        "You are carrying: a egg 1.",
        "You close the fridge 1.",
    ]
    assert play(world, "go to microwave 1", "heat egg 1 with microwave 1", "examine egg 1", "look") == [
        "You arrive at microwave 1. The microwave 1 is closed.",
        "You heat the egg 1 using the microwave 1.",
        "This is a hot egg 1.",
        "You are facing the microwave 1. Next to it, you see nothing.",
    ]
    assert not world.won()
    play(world, "go to countertop 1", "move egg 1 to countertop 1")
    assert world.won()
    assert world.contents("countertop 1") == ["apple 1", "egg 1", "knife 1"]


@pytest.mark.parametrize(
    ("before", "command"),
    [
        ((), "open fridge 1"),  # not there
        ((), "go to fridge 2"),
        (("go to fridge 1",), "go to fridge 1"),
        (("go to fridge 1",), "take egg 1 from fridge 1"),  # closed
        (("go to countertop 1",), "take egg 1 from countertop 1"),
        (("go to countertop 1", "take apple 1 from countertop 1"), "take knife 1 from countertop 1"),  # one hand
        (("go to countertop 1", "take apple 1 from countertop 1", "go to fridge 1"), "move apple 1 to fridge 1"),
        (("go to countertop 1", "take apple 1 from countertop 1", "go to desk 1"), "move apple 1 to desk 1"),
        (
            ("go to countertop 1", "take knife 1 from countertop 1", "go to microwave 1"),
            "heat knife 1 with microwave 1",
        ),
        (("go to desk 1",), "take desklamp 1 from desk 1"),
        (("go to countertop 1",), "slice apple 1 with knife 1"),  # not in hand
        (("go to countertop 1",), "examine apple 1"),  # as the engine has it
        ((), ""),
        ((), "take"),
    ],
)
def test_what_is_not_possible(before: tuple[str, ...], command: str) -> None:
    world = World(household())
    assert NOTHING_HAPPENS not in play(world, *before)
    assert command not in world.admissible()
    facts = world.facts()
    assert world.step(command) == NOTHING_HAPPENS
    assert world.facts() == facts


def test_every_admissible_command_is_understood() -> None:
    commands = ["go to countertop 1", "take knife 1 from countertop 1", "go to fridge 1", "open fridge 1"]
    for number in range(len(commands) + 1):
        world = World(household())
        play(world, *commands[:number])
        for admissible in world.admissible():
            again = World(household())
            play(again, *commands[:number])
            assert again.step(admissible) != NOTHING_HAPPENS, admissible


def test_goals_of_each_task() -> None:
    def won(goal: Goal, *commands: str) -> list[bool]:
        world = World(household(goal))
        results = []
        for command in commands:
            assert world.step(command) != NOTHING_HAPPENS, command
            results.append(world.won())
        return results

    light = Goal("look_at_obj_in_light", "knife", lamp="desklamp")
    commands = [
        "go to countertop 1",
        "take knife 1 from countertop 1",
        "go to desk 1",
        "use desklamp 1",
        "go to fridge 1",
    ]
    assert won(light, *commands) == [False, False, False, True, False]  # not in its light any more
    take = ["go to countertop 1", "take apple 1 from countertop 1", "go to sinkbasin 1"]
    clean = Goal("pick_clean_then_place_in_recep", "apple", "sinkbasin")
    assert not any(won(clean, *take, "move apple 1 to sinkbasin 1"))
    assert won(clean, *take, "clean apple 1 with sinkbasin 1", "move apple 1 to sinkbasin 1")[-1]
    place = Goal("pick_and_place_simple", "apple", "sinkbasin")
    assert won(place, *take, "move apple 1 to sinkbasin 1") == [False, False, False, True]
    two = Goal("pick_two_obj_and_place", "egg", "fridge")
    first = [
        "go to countertop 1",
        "take egg 2 from countertop 1",
        "go to fridge 1",
        "open fridge 1",
        "move egg 2 to fridge 1",
    ]
    second = ["go to sinkbasin 1", "take egg 1 from sinkbasin 1", "go to fridge 1", "move egg 1 to fridge 1"]
    assert won(two, *first, *second) == [False] * 8 + [True]


def test_cooling_takes_the_heat_away() -> None:
    world = World(household())
    play(
        world,
        "go to countertop 1",
        "take apple 1 from countertop 1",
        "go to microwave 1",
        "heat apple 1 with microwave 1",
    )
    assert ("ishot", "apple 1") in world.facts()
    assert play(world, "go to fridge 1", "cool apple 1 with fridge 1", "examine apple 1")[1:] == [
        "You cool the apple 1 using the fridge 1.",
        "This is a cold apple 1.",
    ]
    assert {("iscool", "apple 1")} == {fact for fact in world.facts() if fact[0] in ("ishot", "iscool")}
