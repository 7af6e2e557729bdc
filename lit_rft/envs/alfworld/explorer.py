"""An expert that a policy can imitate: it searches likely places, and acts on its observations."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_rft.envs.alfworld.games import TREATMENTS, Goal, Household, type_of
from lit_rft.envs.alfworld.world import NOTHING_HAPPENS, World

# Types of receptacles in the order in which they are searched: open ones in sight first, those of many doors last.
_SEARCH_ORDER = (
    "countertop", "diningtable", "coffeetable", "sidetable", "desk", "dresser", "bed", "sofa", "armchair", "ottoman",
    "tvstand", "cart", "shelf", "sinkbasin", "bathtubbasin", "toilet", "stoveburner", "coffeemachine", "toaster",
    "towelholder", "handtowelholder", "toiletpaperhanger", "laundryhamper", "garbagecan", "fridge", "microwave",
    "safe", "drawer", "cabinet",
)  # fmt: skip
_CONTENTS = re.compile(r"(?:On|In) (?:the (?P<place>\S+ \d+)|it), you see (?P<names>.+?)\.")
_CLOSED = re.compile(r"The (\S+ \d+) is closed\.")
_NAME = re.compile(r"\ban? (\S+ \d+)")


class Explorer:
    """Solves a game from its observations so far; deterministic.

    It searches the receptacles that may contain the object in a fixed order, takes the object when it sees it,
    remembers other objects, and puts back objects it should not hold. It can continue from any state.

    Args:
        goal: the goal of the game.
        places: names of all receptacles (the first observation lists them).
        likely: type of object -> types of receptacles that may contain it.
    """

    def __init__(self, goal: Goal, places: Sequence[str], likely: Mapping[str, frozenset[str]]) -> None:
        self._goal, self._places, self._likely = goal, list(places), likely
        self._seen: dict[str, list[str]] = {}  # receptacle -> objects known to be there
        self._closed: set[str] = set()
        self._place: str | None = None
        self._holding: str | None = None
        self._taken_from = ""
        self._treated: set[str] = set()

    def know(self, contents: Mapping[str, Sequence[str]]) -> None:
        """Set the contents of receptacles, known from the start."""
        self._seen = {place: list(names) for place, names in contents.items()}

    def next_action(self) -> str | None:
        """Return the next action; None if nothing is left to try."""
        goal, held = self._goal, self._holding
        if held is not None and type_of(held) != goal.object:
            return self._at(self._taken_from) or f"move {held} to {self._taken_from}"
        if held is None:
            return self._acquire()
        if goal.lamp:
            return self._use_lamp()
        if goal.task in TREATMENTS and held not in self._treated:
            verb, tool = TREATMENTS[goal.task]
            place = self._first(tool)
            return None if place is None else self._at(place, is_open=False) or f"{verb} {held} with {place}"
        target = self._target()
        return None if target is None else self._at(target) or f"move {held} to {target}"

    def observe(self, action: str, reply: str) -> None:
        """Process the reply to an action."""
        verb, _, rest = action.partition(" ")
        if reply == NOTHING_HAPPENS:
            self._note_nothing(verb, rest.removeprefix("to "))
            return
        if verb == "go":
            self._place = rest.removeprefix("to ")
        elif verb == "take":
            name, _, place = rest.partition(" from ")
            self._holding, self._taken_from = name, place
            self._seen[place] = [other for other in self._seen.get(place, []) if other != name]
        elif verb == "move":
            name, _, place = rest.partition(" to ")
            self._holding = None
            self._seen.setdefault(place, []).append(name)
        elif verb in ("clean", "heat", "cool"):
            self._note_treatment(verb, rest.partition(" with ")[0])
        elif verb == "close":
            self._closed.add(rest)
        self._read(reply)

    def _note_nothing(self, verb: str, name: str) -> None:
        """Process a move to the current location, which is impossible: receptacles can share a location."""
        if name not in self._places:
            return
        if verb == "go":
            self._place = name
        elif verb == "examine":
            self._seen.setdefault(name, [])

    def _note_treatment(self, verb: str, name: str) -> None:
        wanted = TREATMENTS.get(self._goal.task, ("", ""))[0]
        if verb == wanted:
            self._treated.add(name)
        elif {verb, wanted} == {"heat", "cool"}:
            self._treated.discard(name)

    def _read(self, reply: str) -> None:
        if match := _CLOSED.search(reply):
            self._closed.add(match[1])
        elif (match := _CONTENTS.search(reply)) and self._place is not None:
            place = match["place"] or self._place
            self._closed.discard(place)
            self._seen[place] = _NAME.findall(match["names"])

    def _acquire(self) -> str | None:
        """Take an object of the goal's type, after looking for it."""
        goal = self._goal
        target = self._target() if goal.receptacle else None
        for place in self._by_rank(goal.object):
            for name in self._seen.get(place, []):
                done = place == target and (goal.task not in TREATMENTS or name in self._treated)
                if type_of(name) == goal.object and not done:
                    return self._at(place) or f"take {name} from {place}"
        return self._search(goal.object)

    def _use_lamp(self) -> str | None:
        for place in self._by_rank(self._goal.lamp):
            for name in self._seen.get(place, []):
                if type_of(name) == self._goal.lamp:
                    return self._at(place, is_open=False) or f"use {name}"
        return self._search(self._goal.lamp)

    def _search(self, kind: str) -> str | None:
        """Look into the next unsearched receptacle."""
        for place in self._by_rank(kind):
            if place not in self._seen:
                return self._at(place) or f"examine {place}"
        return None

    def _by_rank(self, kind: str) -> list[str]:
        """Return all receptacles: the current one, then those that may contain the type, in the order of the search."""
        likely = self._likely.get(kind, frozenset())

        def rank(place: str) -> tuple[bool, bool, int, int]:
            order = _SEARCH_ORDER.index(type_of(place)) if type_of(place) in _SEARCH_ORDER else len(_SEARCH_ORDER)
            return place != self._place, type_of(place) not in likely, order, _number(place)

        return sorted(self._places, key=rank)

    def _target(self) -> str | None:
        """Return the receptacle of the goal: the one with most of its objects, else the first."""

        def rank(place: str) -> tuple[int, int]:
            return -sum(type_of(name) == self._goal.object for name in self._seen.get(place, [])), _number(place)

        places = [place for place in self._places if type_of(place) == self._goal.receptacle]
        return min(places, key=rank, default=None)

    def _first(self, kind: str) -> str | None:
        return min((place for place in self._places if type_of(place) == kind), key=_number, default=None)

    def _at(self, place: str, is_open: bool = True) -> str | None:
        """Return the action that leads to a receptacle (and opens it); None if that is done."""
        if self._place != place:
            return f"go to {place}"
        return f"open {place}" if is_open and place in self._closed else None


def _number(name: str) -> int:
    return int(name.rpartition(" ")[2]) if name.rpartition(" ")[2].isdigit() else 0


@dataclass(frozen=True)
class Mistakes:
    """Wrong actions among an expert's, which continues from their results.

    Attributes:
        probability: of a wrong action at each step, in [0, 1).
        seed: of the choice.
    """

    probability: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability < 1.0:
            raise ValueError(f"probability must be in [0, 1), got {self.probability}")

    def choose(self, rng: random.Random, world: World) -> str:
        """Choose a wrong action: a place that does not exist, an object that is not there, or any possible action."""
        kind = rng.random()
        if kind < 0.35:
            name = type_of(rng.choice(world.household.receptacles).name)
            count = sum(r.type == name for r in world.household.receptacles)
            return f"go to {name} {count + 1}"
        if kind < 0.6 and world.place is not None:
            name = world.household.goal.object
            return f"take {name} 1 from {world.place}" if world.holding is None else f"move {name} 1 to {world.place}"
        return rng.choice([command for command in world.admissible() if command != "help"])


def solve(
    household: Household,
    *,
    max_steps: int = 100,
    mistakes: Mistakes | None = None,
    key: str = "",
    omniscient: bool = False,
) -> tuple[list[str], bool]:
    """Play a game with an `Explorer`, in plain Python.

    Args:
        household: the game.
        max_steps: maximum number of actions.
        mistakes: wrong actions among the explorer's.
        key: further seed of the mistakes, such as the id of the episode.
        omniscient: the explorer knows from the start where everything is: the shortest path, which a policy that does
            not know it cannot learn.
    Returns:
        The actions, and whether they reach the goal.
    """
    world = World(household)
    likely: dict[str, set[str]] = {}
    for receptacle in household.receptacles:
        for kind in receptacle.accepts:
            likely.setdefault(kind, set()).add(receptacle.type)
    lamp = household.goal.lamp
    if lamp:
        likely.setdefault(lamp, {"desk", "sidetable", "dresser"})
    explorer = Explorer(
        household.goal, [r.name for r in household.receptacles], {kind: frozenset(v) for kind, v in likely.items()}
    )
    if omniscient:
        explorer.know({r.name: world.contents(r.name) for r in household.receptacles})
    rng = random.Random(f"{mistakes.seed if mistakes else 0}/{key}")
    actions: list[str] = []
    while len(actions) < max_steps and not world.won():
        if mistakes is not None and rng.random() < mistakes.probability:
            action: str | None = mistakes.choose(rng, world)
        else:
            action = explorer.next_action()
        if action is None:
            break
        actions.append(action)
        explorer.observe(action, world.step(action))
    return actions, world.won()
