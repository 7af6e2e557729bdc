"""Parts of the `alfworld` package for games: domain, grammar, floor plans and tables of objects.

They are read from the files of the installed package, which is never imported: that would create a folder in the user's
home and set an environment variable.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOMS = {
    "Kitchen": range(1, 31),
    "LivingRoom": range(201, 231),
    "Bedroom": range(301, 331),
    "Bathroom": range(401, 431),
}

# Furniture that a scene's list of types names, but for which the package has no poses: number of instances.
_WITHOUT_POSE = {
    "CoffeeMachine": 1, "Toaster": 1, "StoveBurner": 4, "GarbageCan": 1, "Toilet": 1, "Microwave": 1, "Fridge": 1,
    "TowelHolder": 1, "HandTowelHolder": 1, "ToiletPaperHanger": 1,
}  # fmt: skip
_LAMPS = {"DeskLamp", "FloorLamp"}
# The package's table knows no place for lamps, and of the television's stand only that it holds a tissue box.
_LAMP_PLACES = ("Desk", "SideTable", "Dresser", "CoffeeTable", "DiningTable", "Shelf")
_ON_TV_STANDS = {"RemoteControl", "Book", "Newspaper", "Box", "Vase", "Statue", "CreditCard", "KeyChain", "Laptop"}
EXTRA = "lit-rft[alfworld]"


@dataclass(frozen=True)
class FloorPlan:
    """Furniture and kinds of objects of a room.

    Attributes:
        number: number of the scene.
        receptacles: type of receptacle -> number of instances.
        objects: types of objects, sorted.
    """

    number: int
    receptacles: Mapping[str, int]
    objects: tuple[str, ...]


@dataclass(frozen=True)
class Resources:
    """Everything that games are generated from.

    Attributes:
        version: of the `alfworld` package.
        domain: the PDDL domain.
        grammar: TextWorld's grammar of commands and replies, with the goal left open.
        floor_plans: number of the scene -> plan.
        train_scenes: scenes of the training split; the others are held out.
        places: type of object -> types of receptacles that may contain it, sorted.
        properties: ``heatable``, ``coolable``, ``cleanable``, ``toggleable``, ``sliceable`` -> types of objects.
        openable: types of receptacles that can be opened.
        goals: task -> PDDL goal with the fields ``obj``, ``recep`` and ``toggle``.
        descriptions: task -> its descriptions in words, with the same fields.
        rooms: task -> rooms in which it is set.
    """

    version: str
    domain: str
    grammar: str
    floor_plans: Mapping[int, FloorPlan]
    train_scenes: frozenset[int]
    places: Mapping[str, tuple[str, ...]]
    properties: Mapping[str, frozenset[str]]
    openable: frozenset[str]
    goals: Mapping[str, str]
    descriptions: Mapping[str, tuple[str, ...]]
    rooms: Mapping[str, frozenset[str]]

    def room(self, scene: int) -> str:
        """Return the kind of room of a scene."""
        return next(room for room, numbers in ROOMS.items() if scene in numbers)


@functools.cache
def load_resources() -> Resources:
    """Read the installed `alfworld` package; 0.1 s, once per process.

    Raises:
        ImportError: the extra ``lit-rft[alfworld]`` is missing.
    """
    from importlib.metadata import version

    folder = package_folder()
    constants = _run_module(folder / "gen" / "constants.py")
    goals = _run_module(folder / "gen" / "goal_library.py").gdict
    places = _places(constants.VAL_RECEPTACLE_OBJECTS)
    plans = {}
    for file in (folder / "gen" / "layouts").glob("FloorPlan*-objects.json"):
        number = int(re.sub(r"\D", "", file.name))
        plans[number] = _floor_plan(number, file, places)
    return Resources(
        version=version("alfworld"),
        domain=(folder / "data" / "alfred.pddl").read_text(),
        grammar=(folder / "data" / "alfred.twl2").read_text(),
        floor_plans=plans,
        train_scenes=frozenset(constants.TRAIN_SCENE_NUMBERS),
        places=places,
        properties={name.lower(): frozenset(types) for name, types in constants.VAL_ACTION_OBJECTS.items()},
        openable=frozenset(constants.OPENABLE_CLASS_SET),
        goals={task: goal["pddl"] for task, goal in goals.items()},
        descriptions={task: tuple(goal["templates"]) for task, goal in goals.items()},
        rooms={task: frozenset(rooms) for task, rooms in constants.GOALS_VALID.items()},
    )


def package_folder() -> Path:
    """Return the folder of the installed `alfworld` package, without importing it.

    Raises:
        ImportError: the extra ``lit-rft[alfworld]`` is missing.
    """
    spec = importlib.machinery.PathFinder.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"ALFWorld's games need the package alfworld: pip install '{EXTRA}'")
    return Path(next(iter(spec.submodule_search_locations)))


def _run_module(path: Path) -> Any:
    """Run one file of the package as a separate module."""
    spec = importlib.util.spec_from_file_location(f"_lit_rft_alfworld_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _places(contents: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]]:
    """Invert the table receptacle -> objects, without movable receptacles (a mug, a pan)."""
    movable = {name for objects in contents.values() for name in objects}
    places: dict[str, set[str]] = {lamp: set(_LAMP_PLACES) for lamp in _LAMPS}
    for receptacle, objects in contents.items():
        if receptacle not in movable:
            more = _ON_TV_STANDS if receptacle == "TVStand" else set()
            for name in objects | more:
                places.setdefault(name, set()).add(receptacle)
    return {name: tuple(sorted(receptacles)) for name, receptacles in places.items()}


def _floor_plan(number: int, objects_file: Path, places: Mapping[str, tuple[str, ...]]) -> FloorPlan:
    types = set(json.loads(objects_file.read_text()))
    poses = json.loads(Path(str(objects_file).replace("-objects", "-openable")).read_text())
    receptacles: dict[str, int] = {}
    for name in poses:
        kind = name.split("|")[0]
        kind = f"{kind}Basin" if kind in ("Sink", "Bathtub") else kind
        receptacles[kind] = receptacles.get(kind, 0) + 1
    for kind, instances in _WITHOUT_POSE.items():
        if kind in types:
            receptacles.setdefault(kind, instances)
    types |= {"DeskLamp"} if "Lamp" in types else set()
    return FloorPlan(number, dict(sorted(receptacles.items())), tuple(sorted(types & places.keys())))
