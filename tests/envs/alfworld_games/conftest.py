"""A few small rooms in place of ALFWorld's floor plans, so that most tests need no extra."""

from __future__ import annotations

import importlib.util

import pytest

from lit_rft.envs.alfworld import sources
from lit_rft.envs.alfworld.resources import FloorPlan, Resources

PLACES = {
    "Mug": ("Cabinet", "CoffeeMachine", "CounterTop", "Desk", "Shelf", "SinkBasin"),
    "Egg": ("CounterTop", "Fridge", "Microwave", "SinkBasin"),
    "Knife": ("CounterTop", "SinkBasin"),
    "Apple": ("CounterTop", "Fridge", "SinkBasin"),
    "Book": ("Bed", "Desk", "Shelf"),
    "DeskLamp": ("Desk", "Shelf"),
}
KITCHEN = {"Cabinet": 20, "CounterTop": 2, "Fridge": 1, "Microwave": 1, "SinkBasin": 1}
BEDROOM = {"Bed": 1, "Desk": 2, "Shelf": 3}
IN_KITCHENS, IN_BEDROOMS = ("Apple", "Egg", "Knife", "Mug"), ("Book", "DeskLamp", "Mug")
WHERE = frozenset({"Kitchen", "Bedroom"})


def small_resources() -> Resources:
    """Six rooms: of each kind one for training and two that are held out."""
    plans = [FloorPlan(number, KITCHEN, IN_KITCHENS) for number in (1, 2, 7)]
    plans += [FloorPlan(number, BEDROOM, IN_BEDROOMS) for number in (301, 302, 307)]
    put = ("put a {obj} in {recep}",)
    kitchen = frozenset({"Kitchen"})
    return Resources(
        version="test",
        domain="",
        grammar="",
        floor_plans={plan.number: plan for plan in plans},
        train_scenes=frozenset({7, 307}),
        places=PLACES,
        properties={
            "cleanable": frozenset({"Mug", "Egg", "Knife", "Apple"}),
            "heatable": frozenset({"Mug", "Egg", "Apple"}),
            "coolable": frozenset({"Mug", "Egg", "Apple"}),
            "toggleable": frozenset({"DeskLamp"}),
            "sliceable": frozenset({"Apple"}),
        },
        openable=frozenset({"Cabinet", "Fridge", "Microwave"}),
        goals={},
        descriptions={
            "pick_and_place_simple": put,
            "look_at_obj_in_light": ("look at {obj} under the {toggle}",),
            "pick_clean_then_place_in_recep": ("put a clean {obj} in {recep}",),
            "pick_heat_then_place_in_recep": ("put a hot {obj} in {recep}",),
            "pick_cool_then_place_in_recep": ("put a cool {obj} in {recep}",),
            "pick_two_obj_and_place": ("put two {obj} in {recep}",),
        },
        rooms={
            "pick_and_place_simple": WHERE,
            "look_at_obj_in_light": frozenset({"Bedroom"}),
            "pick_clean_then_place_in_recep": kitchen,
            "pick_heat_then_place_in_recep": kitchen,
            "pick_cool_then_place_in_recep": kitchen,
            "pick_two_obj_and_place": WHERE,
        },
    )


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> Resources:
    """Have generated games made of these rooms, in this process."""
    resources = small_resources()
    monkeypatch.setattr(sources, "load_resources", lambda: resources)
    return resources


def has_extra() -> bool:
    return all(importlib.util.find_spec(name) for name in ("alfworld", "textworld", "fast_downward"))


@pytest.fixture
def extra() -> None:
    """Skip a test where the extra is not installed."""
    if not has_extra():
        pytest.skip("needs lit-rft[alfworld]")
