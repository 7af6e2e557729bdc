"""A household game: its furniture, its objects and its goal; and its conversion to ALFWorld's file format."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lit_rft.envs.alfworld.resources import Resources

TASKS = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
# task -> what must be done to the object, and the receptacle that it takes
TREATMENTS = {
    "pick_clean_then_place_in_recep": ("clean", "sinkbasin"),
    "pick_heat_then_place_in_recep": ("heat", "microwave"),
    "pick_cool_then_place_in_recep": ("cool", "fridge"),
}
MOVE = "move {o} to {r}"  # the command to put an object down, as in current releases of the games
_PUT = re.compile(r"(?:put|move|place) (?P<o>.+?) (?:in/on|into|onto|in|on|to) (?:the )?(?P<r>.+)")
_FLAGS = ("cleanable", "heatable", "coolable", "toggleable", "sliceable")


@dataclass(frozen=True)
class Goal:
    """The goal of a game.

    Attributes:
        task: one of `TASKS`.
        object: type of the object, in lower case as in commands (``mug``).
        receptacle: type of its target receptacle; empty for `look_at_obj_in_light`.
        lamp: type of the lamp; empty for the other tasks.
    """

    task: str
    object: str
    receptacle: str = ""
    lamp: str = ""


@dataclass(frozen=True)
class Receptacle:
    """A piece of furniture.

    Attributes:
        id: in the PDDL problem; the order of ids is the order in which things are listed.
        name: in commands, such as ``cabinet 3``.
        type: such as ``cabinet``.
        openable: whether it can be opened; it is closed at first unless `opened`.
        opened: whether it is open at first.
        location: receptacles of the same location are reached together.
        accepts: types of objects that may be put there.
    """

    id: str
    name: str
    type: str
    openable: bool
    location: str
    accepts: frozenset[str]
    opened: bool = False


@dataclass(frozen=True)
class Thing:
    """An object that can be taken, or a lamp.

    Attributes:
        id, name, type: as of `Receptacle`.
        place: name of the receptacle where it is at first; None for nowhere.
        flags: of ``pickupable``, ``cleanable``, ``heatable``, ``coolable``, ``toggleable``, ``sliceable``, and what
            holds at first of ``isclean``, ``ishot``, ``iscool``, ``istoggled``, ``issliced``.
    """

    id: str
    name: str
    type: str
    place: str | None
    flags: frozenset[str]


@dataclass(frozen=True)
class Household:
    """A game.

    Attributes:
        scene: number of the floor plan; 0 if unknown.
        goal: the goal.
        description: the goal in words.
        receptacles, things: sorted by id.
        put: the game's form of the command to put an object down, with the fields ``o`` and ``r``.
    """

    scene: int
    goal: Goal
    description: str
    receptacles: tuple[Receptacle, ...]
    things: tuple[Thing, ...]
    put: str = MOVE


def in_game_form(command: str, put: str) -> str:
    """Write a command to put an object down in a game's form, from any common one; return others unchanged."""
    match = _PUT.fullmatch(command)
    return put.format(o=match["o"], r=match["r"]) if match else command


def instance_ids(kind: str, count: int) -> Iterable[tuple[str, str]]:
    """Return ids and names of the instances of a type, in order of the ids. ALFWorld numbers them downwards."""
    for index in range(1, count + 1):
        base = f"{kind.removesuffix('Basin')}_bar_{index:02d}"
        identifier = f"{base}_bar_{kind}" if kind.endswith("Basin") else base
        yield identifier.lower(), f"{kind.lower()} {count - index + 1}"


def number_names(ids: Iterable[str]) -> dict[str, str]:
    """Return the names in commands of the ids of a PDDL problem, numbered downwards as in ALFWorld."""
    types: dict[str, str] = {}
    for identifier in sorted(ids):
        kind, bar, _ = identifier.partition("_bar_")
        if bar:
            types[identifier] = f"{kind}basin" if "basin" in identifier else kind
    counts: dict[str, int] = {}
    for kind in types.values():
        counts[kind] = counts.get(kind, 0) + 1
    names = {}
    for identifier, kind in types.items():
        names[identifier] = f"{kind} {counts[kind]}"
        counts[kind] -= 1
    return names


def pddl_problem(household: Household, resources: Resources) -> str:
    """Convert a game to a PDDL problem of ALFWorld's domain."""
    receptacle_types = {r.type for r in household.receptacles} | {"sinkbasin", "microwave", "fridge"}
    object_types = {t.type for t in household.things} | {"knife", "butterknife"}  # the domain names these
    locations = sorted({r.location for r in household.receptacles} | {"loc_bar_0"})
    declarations = [("agent1", "agent")]
    declarations += [(location, "location") for location in locations]
    declarations += [(f"{kind}Type", "rtype") for kind in sorted(receptacle_types)]
    declarations += [(f"{kind}Type", "otype") for kind in sorted(object_types)]
    declarations += [(r.id, "receptacle") for r in household.receptacles]
    declarations += [(t.id, "object") for t in household.things]
    facts = ["(atLocation agent1 loc_bar_0)", "(= (total-cost) 0)"]
    for r in household.receptacles:
        facts += [f"(receptacleType {r.id} {r.type}Type)", f"(receptacleAtLocation {r.id} {r.location})"]
        facts += [f"(openable {r.id})"] if r.openable else []
    accepts = {r.type: r.accepts for r in household.receptacles}
    facts += [
        f"(canContain {kind}Type {other}Type)"
        for kind in sorted(accepts)
        for other in sorted(accepts[kind] & object_types)
    ]
    where = {r.name: r for r in household.receptacles}
    for t in household.things:
        facts.append(f"(objectType {t.id} {t.type}Type)")
        facts += [f"({flag} {t.id})" for flag in sorted(t.flags)]
        if t.place is not None:
            facts += [
                f"(inReceptacle {t.id} {where[t.place].id})",
                f"(objectAtLocation {t.id} {where[t.place].location})",
            ]
    goal = household.goal
    fields = {"obj": goal.object, "recep": goal.receptacle, "toggle": goal.lamp}
    lines = "\n".join(f"    {name} - {kind}" for name, kind in declarations)
    target = resources.goals[goal.task].replace("#", "-").format(**fields)  # it also closes the problem
    return (
        f"(define (problem household)\n  (:domain alfred)\n  (:objects\n{lines})\n  (:init\n    "
        + "\n    ".join(facts)
        + f")\n{target}"
    )


def game_data(household: Household, resources: Resources) -> dict[str, Any]:
    """Convert a game to the contents of one of ALFWorld's ``game.tw-pddl`` files."""
    return {
        "pddl_domain": resources.domain,
        "grammar": resources.grammar.replace("UNKNOWN GOAL", household.description),
        "pddl_problem": pddl_problem(household, resources),
        "solvable": True,
    }


def type_of(name: str) -> str:
    """Return the type in a name: ``mug`` of ``mug 2``."""
    return re.sub(r" \d+$", "", name)
