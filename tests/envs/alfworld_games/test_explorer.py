"""The explorer and the expert of the suites: what it does, and that it recovers from anything."""

from __future__ import annotations

import pytest

from lit_rft.envs.alfworld import Layout, generate, solve
from lit_rft.envs.alfworld.explorer import Explorer, Mistakes
from lit_rft.envs.alfworld.games import TASKS, Goal
from lit_rft.envs.alfworld.resources import Resources
from lit_rft.envs.alfworld.world import NOTHING_HAPPENS, World

LIKELY = {"mug": frozenset({"desk", "shelf"}), "desklamp": frozenset({"desk"})}


def explorer(task: str = "pick_and_place_simple", receptacle: str = "bed") -> Explorer:
    goal = Goal(task, "mug", "", "desklamp") if task == "look_at_obj_in_light" else Goal(task, "mug", receptacle)
    return Explorer(goal, ["bed 1", "desk 2", "desk 1", "shelf 1", "drawer 1"], LIKELY)


def test_it_looks_where_the_object_is_likely_to_be_and_takes_it_on_sight() -> None:
    agent = explorer()
    script = [
        ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a book 1."),
        ("go to desk 2", "You arrive at desk 2. On the desk 2, you see nothing."),
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a book 2, a mug 3, and a pen 1."),
        ("take mug 3 from shelf 1", "You pick up the mug 3 from the shelf 1."),
        ("go to bed 1", "You arrive at bed 1. On the bed 1, you see nothing."),
        ("move mug 3 to bed 1", "You move the mug 3 to the bed 1."),
    ]
    for action, reply in script:
        assert agent.next_action() == action
        agent.observe(action, reply)


def test_unlikely_places_come_last_and_closed_ones_are_opened() -> None:
    agent = explorer()
    for name in ("desk 1", "desk 2", "shelf 1"):
        agent.observe(f"go to {name}", f"You arrive at {name}. On the {name}, you see nothing.")
    assert agent.next_action() == "go to bed 1"
    agent.observe("go to bed 1", "You arrive at bed 1. On the bed 1, you see nothing.")
    assert agent.next_action() == "go to drawer 1"
    agent.observe("go to drawer 1", "You arrive at drawer 1. The drawer 1 is closed.")
    assert agent.next_action() == "open drawer 1"
    agent.observe("open drawer 1", "You open the drawer 1. The drawer 1 is open. In it, you see a mug 1.")
    assert agent.next_action() == "take mug 1 from drawer 1"


def test_it_remembers_the_lamp_that_it_saw() -> None:
    agent = explorer("look_at_obj_in_light")
    agent.observe("go to desk 1", "You arrive at desk 1. On the desk 1, you see a desklamp 1.")
    agent.observe("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a mug 1.")
    agent.observe("take mug 1 from shelf 1", "You pick up the mug 1 from the shelf 1.")
    assert agent.next_action() == "go to desk 1"
    agent.observe("go to desk 1", "You arrive at desk 1. On the desk 1, you see a desklamp 1.")
    assert agent.next_action() == "use desklamp 1"


def test_it_puts_back_what_it_should_not_hold() -> None:
    agent = explorer()
    agent.observe("go to desk 1", "You arrive at desk 1. On the desk 1, you see a book 1.")
    agent.observe("take book 1 from desk 1", "You pick up the book 1 from the desk 1.")
    assert agent.next_action() == "move book 1 to desk 1"
    agent.observe("go to bed 1", "You arrive at bed 1. On the bed 1, you see nothing.")
    assert agent.next_action() == "go to desk 1"


def test_receptacles_that_share_a_location_are_examined() -> None:
    agent = explorer()
    agent.observe("go to desk 1", "You arrive at desk 1. On the desk 1, you see nothing.")
    agent.observe("go to desk 2", NOTHING_HAPPENS)
    assert agent.next_action() == "examine desk 2"
    agent.observe("examine desk 2", "On the desk 2, you see a mug 2.")
    assert agent.next_action() == "take mug 2 from desk 2"
    agent = explorer()
    agent.observe("go to desk 2", NOTHING_HAPPENS)
    agent.observe("examine desk 2", NOTHING_HAPPENS)
    assert agent.next_action() == "go to desk 1"


@pytest.mark.parametrize("task", TASKS)
def test_it_recovers_from_mistakes(rooms: Resources, task: str) -> None:
    lengths = {"without": 0, "with": 0}
    for seed in range(25):
        household = generate(task, "train", seed, Layout(), rooms)
        actions, won = solve(household)
        assert won
        lengths["without"] += len(actions)
        actions, won = solve(household, mistakes=Mistakes(0.3), key=str(seed), max_steps=200)
        assert won
        lengths["with"] += len(actions)
    assert lengths["with"] > 1.1 * lengths["without"]


def test_mistakes_are_of_every_kind_and_follow_the_seed(rooms: Resources) -> None:
    household = generate(TASKS[2], "train", 0, Layout(), rooms)
    one, again, other = (solve(household, mistakes=Mistakes(0.5, seed), key="a")[0] for seed in (0, 0, 1))
    assert one == again != other
    assert one != solve(household, mistakes=Mistakes(0.5), key="b")[0]
    replies: list[str] = []
    for seed in range(20):
        world = World(household)
        replies += [world.step(action) for action in solve(household, mistakes=Mistakes(0.5, seed))[0]]
    assert 0.1 < replies.count(NOTHING_HAPPENS) / len(replies) < 0.5
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\), got 1.0"):
        Mistakes(1.0)


def test_knowing_everything_is_shorter(rooms: Resources) -> None:
    games = [generate(task, "dev", seed, Layout(), rooms) for task in TASKS for seed in range(10)]
    explored, planned = (sum(len(solve(game, omniscient=knows)[0]) for game in games) for knows in (False, True))
    assert all(solve(game, omniscient=True)[1] for game in games)
    assert planned < 0.9 * explored
