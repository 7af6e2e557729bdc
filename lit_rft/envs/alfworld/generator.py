"""Synthetic households: games generated from ALFWorld's floor plans, with new furniture, objects and goals.

They follow ALFWorld's domain and grammar but are not its games: results on them are not results on ALFWorld.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from lit_rft.envs.alfworld.games import TASKS, TREATMENTS, Goal, Household, Receptacle, Thing, instance_ids
from lit_rft.envs.alfworld.resources import FloorPlan, Resources

SyntheticSplit = Literal["train", "dev", "test"]
SPLITS: tuple[SyntheticSplit, ...] = ("train", "dev", "test")

_FLAGS = {"cleanable": "clean", "heatable": "heat", "coolable": "cool"}
_FLAG_OF_VERB = {verb: flag for flag, verb in _FLAGS.items()}
_ATTEMPTS = 200


@dataclass(frozen=True)
class Layout:
    """The number of objects in generated households, and the share of hidden ones.

    Attributes:
        max_per_type: maximum number of receptacles of one type; 20 cabinets make a long game.
        max_instances: maximum number of objects of one type.
        closed: share of the objects that are in closed receptacles if possible, in [0, 1]; None for chance.
    """

    max_per_type: int = 4
    max_instances: int = 3
    closed: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_per_type", "max_instances"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.closed is not None and not 0.0 <= self.closed <= 1.0:
            raise ValueError(f"closed must be in 0..1 or null, got {self.closed}")


def scenes(split: str, resources: Resources) -> list[int]:
    """Return the numbers of the floor plans of a split. Splits have no common ones.

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"synthetic games have the splits {', '.join(SPLITS)}, got {split!r}")
    if split == "train":
        return sorted(resources.train_scenes & resources.floor_plans.keys())
    held_out = sorted(resources.floor_plans.keys() - resources.train_scenes)
    by_room: dict[str, list[int]] = {}
    for number in held_out:
        by_room.setdefault(resources.room(number), []).append(number)
    halves = [
        numbers[: len(numbers) // 2] if split == "dev" else numbers[len(numbers) // 2 :] for numbers in by_room.values()
    ]
    return [number for half in halves for number in half]


def generate(task: str, split: str, seed: int, layout: Layout, resources: Resources) -> Household:
    """Generate a game: the same one for the same arguments.

    The goal is not reached at the start, and everything that it needs is there.

    Args:
        task: one of `TASKS`.
        split: ``train``, ``dev`` or ``test``: which floor plans are used.
        seed: number of the game.
        layout: settings of the household.
        resources: see `load_resources`.

    Raises:
        ValueError: unknown task or split.
        RuntimeError: no floor plan of the split has what the task needs.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    candidates = [n for n in scenes(split, resources) if resources.room(n) in resources.rooms[task]]
    rng = random.Random(f"{task}/{split}/{seed}")
    for _ in range(_ATTEMPTS):
        plan = resources.floor_plans[rng.choice(candidates)]
        household = _Draft(plan, layout, resources, rng).household(task)
        if household is not None:
            return household
    raise RuntimeError(f"no floor plan of the split {split!r} has what the task {task} needs, in {_ATTEMPTS} attempts")


class _Draft:
    """One attempt on one floor plan."""

    def __init__(self, plan: FloorPlan, layout: Layout, resources: Resources, rng: random.Random) -> None:
        self._plan, self._layout, self._resources, self._rng = plan, layout, resources, rng
        self._receptacles = self._furnish()
        self._by_type: dict[str, list[Receptacle]] = {}
        for receptacle in self._receptacles:
            self._by_type.setdefault(receptacle.type, []).append(receptacle)

    def household(self, task: str) -> Household | None:
        """Make a game of the task, or None if this floor plan has none."""
        goals = self._goals(task)
        if not goals:
            return None
        goal_object, goal_receptacle = self._rng.choice(goals)
        lamps = [kind for kind in ("DeskLamp", "FloorLamp") if kind in self._plan.objects and self._places(kind)]
        lamp = self._rng.choice(lamps) if task == "look_at_obj_in_light" and lamps else ""
        goal = Goal(task, goal_object.lower(), goal_receptacle.lower(), lamp.lower())
        things = [thing for kind in self._plan.objects for thing in self._place_all(kind, goal)]
        text = self._rng.choice(self._resources.descriptions[task])
        description = text.format(obj=goal.object, recep=goal.receptacle, toggle=goal.lamp)
        ordered = tuple(sorted(things, key=lambda thing: thing.id))
        return Household(self._plan.number, goal, description, self._receptacles, ordered)

    def _furnish(self) -> tuple[Receptacle, ...]:
        receptacles: list[Receptacle] = []
        for kind, count in self._plan.receptacles.items():
            accepts = frozenset(name.lower() for name, places in self._resources.places.items() if kind in places)
            for identifier, name in instance_ids(kind, min(count, self._layout.max_per_type)):
                location = f"loc_bar_{len(receptacles) + 1}"
                openable = kind in self._resources.openable
                receptacles.append(Receptacle(identifier, name, kind.lower(), openable, location, accepts))
        return tuple(sorted(receptacles, key=lambda receptacle: receptacle.id))

    def _places(self, kind: str, excluded: str = "") -> list[str]:
        """Return the types of this household's receptacles that may contain a type of object, in lower case."""
        types = [place.lower() for place in self._resources.places[kind]]
        return [place for place in types if place in self._by_type and place != excluded]

    def _goals(self, task: str) -> list[tuple[str, str]]:
        """Return the pairs of an object's and a receptacle's type for which the task is possible."""
        verb, tool = TREATMENTS.get(task, ("", ""))
        if tool and tool not in self._by_type:
            return []
        pairs = []
        for kind in self._plan.objects:
            if kind in ("DeskLamp", "FloorLamp") or (
                verb and kind not in self._resources.properties[_FLAG_OF_VERB[verb]]
            ):
                continue
            if task == "look_at_obj_in_light":
                pairs += [(kind, "")] if self._places(kind) and self._lamp_is_possible() else []
                continue
            places = [place for place in self._places(kind) if place != tool]
            pairs += [(kind, place) for place in places if self._places(kind, place)]
        return pairs

    def _lamp_is_possible(self) -> bool:
        return any(kind in self._plan.objects and self._places(kind) for kind in ("DeskLamp", "FloorLamp"))

    def _place_all(self, kind: str, goal: Goal) -> list[Thing]:
        """Place the instances of one type of object, none of the goal's at its target."""
        is_goal = kind.lower() == goal.object
        places = self._places(kind, goal.receptacle if is_goal else "")
        if not places:
            return []
        is_lamp = kind in ("DeskLamp", "FloorLamp")
        least = 2 if is_goal and goal.task == "pick_two_obj_and_place" else 1
        most = 1 if is_lamp else max(least, self._layout.max_instances)
        flags = {flag for flag, kinds in self._resources.properties.items() if kind in kinds}
        flags |= set() if is_lamp else {"pickupable"}
        things = []
        for identifier, name in instance_ids(kind, self._rng.randint(least, most)):
            place = self._choose_place(places)
            things.append(Thing(identifier, name, kind.lower(), place.name, frozenset(flags)))
        return things

    def _choose_place(self, types: list[str]) -> Receptacle:
        """Choose a type first and then one of its instances: otherwise 20 cabinets would hold everything."""
        closed = self._layout.closed
        if closed is not None:
            is_closed = self._rng.random() < closed
            types = [kind for kind in types if self._by_type[kind][0].openable == is_closed] or types
        return self._rng.choice(self._by_type[self._rng.choice(types)])
