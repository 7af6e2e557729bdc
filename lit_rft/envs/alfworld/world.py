"""A household game in plain Python, with the rules and words of ALFWorld's domain and grammar but without its engine.

A step takes a fraction of a millisecond. On games with a separate location for each receptacle, as in generated ones,
observations, actions and the goal test are those of TextWorld (a test compares them word for word).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lit_rft.envs.alfworld.games import TREATMENTS, Household, Receptacle

NOTHING_HAPPENS = "Nothing happens."
_MIDDLE = "You are in the middle of a room. Looking quickly around you, you see"
_TOOLS = dict(TREATMENTS.values())  # verb -> type of receptacle
_FLAG_OF = {"clean": "cleanable", "heat": "heatable", "cool": "coolable"}
_STATE_OF = {"clean": "isclean", "heat": "ishot", "cool": "iscool"}
_KNIVES = ("knife", "butterknife")
_COMMAND = re.compile(
    r"(?P<verb>go to|open|close|take|move|examine|use|heat|clean|cool|slice) (?P<what>.+?)"
    r"(?:(?: from | to | with )(?P<where>.+))?"
)
_HELP = (
    "Commands: look, inventory, go to R, open R, close R, take O from R, move O to R, examine R or O, use O, "
    "heat O with R, clean O with R, cool O with R, slice O with O, where R is a receptacle and O an object."
)


class World:
    """One game in progress.

    Args:
        household: the game.

    Attributes:
        holding: name of the object in hand, or None.
        place: name of the receptacle at the agent's location, or None at the start.
    """

    def __init__(self, household: Household) -> None:
        self.household = household
        self._receptacles = {r.name: r for r in household.receptacles}
        self._things = {t.name: t for t in household.things}
        self._place_of = {t.name: t.place for t in household.things}
        self._states = {t.name: set(t.flags) for t in household.things}
        self._open = {r.name for r in household.receptacles if r.opened}
        self.holding: str | None = None
        self.place: str | None = None

    def intro(self) -> str:
        """Return the first observation: the receptacles of the room."""
        names = _listed(f"a {r.name}" for r in self.household.receptacles)
        return f"{_MIDDLE} {names}."

    def step(self, command: str) -> str:
        """Execute one command, and return the reply; `NOTHING_HAPPENS` for everything that is impossible now."""
        if command not in self._commands():
            return NOTHING_HAPPENS
        if command == "look":
            return self._look()
        if command == "inventory":
            return f"You are carrying: a {self.holding}." if self.holding else "You are not carrying anything."
        if command == "help":
            return _HELP
        match = _COMMAND.fullmatch(command)
        assert match is not None
        return self._do(match["verb"], match["what"], match["where"] or "")

    def admissible(self) -> list[str]:
        """Return all commands that are possible now, sorted."""
        return sorted(self._commands())

    def won(self) -> bool:
        """Return whether the goal is reached."""
        goal = self.household.goal
        if goal.lamp:
            lit = any(
                self._things[name].type == goal.lamp and "istoggled" in self._states[name] and self._is_here(place)
                for name, place in self._place_of.items()
            )
            return lit and self.holding is not None and self._things[self.holding].type == goal.object
        needed = (
            {_FLAG_OF[TREATMENTS[goal.task][0]], _STATE_OF[TREATMENTS[goal.task][0]]}
            if goal.task in TREATMENTS
            else set()
        )
        counts: dict[str, int] = {}
        for name, place in self._place_of.items():
            if place is not None and self._things[name].type == goal.object and needed <= self._states[name]:
                counts[place] = counts.get(place, 0) + (self._receptacles[place].type == goal.receptacle)
        return max(counts.values(), default=0) >= (2 if goal.task == "pick_two_obj_and_place" else 1)

    def facts(self) -> set[tuple[str, ...]]:
        """Return the current facts for subgoals, see `gained`."""
        facts: set[tuple[str, ...]] = {("holds", self.holding)} if self.holding else set()
        facts |= {("inreceptacle", name, place) for name, place in self._place_of.items() if place is not None}
        names = ("isclean", "ishot", "iscool", "istoggled")
        return facts | {(state, name) for name, states in self._states.items() for state in names if state in states}

    def contents(self, place: str) -> list[str]:
        """Return the names of the objects in a receptacle, in order of their ids."""
        return [t.name for t in self.household.things if self._place_of[t.name] == place]

    def _do(self, verb: str, what: str, where: str) -> str:
        if verb == "go to":
            self.place = what
            return f"You arrive at {what}. {self._examine(what)}"
        if verb == "open":
            self._open.add(what)
            return f"You open the {what}. {self._examine(what)}"
        if verb == "close":
            self._open.discard(what)
            return f"You close the {what}."
        if verb == "take":
            self._place_of[what], self.holding = None, what
            return f"You pick up the {what} from the {where}."
        if verb == "move":
            self._place_of[what], self.holding = where, None
            return f"You move the {what} to the {where}."
        if verb == "examine":
            return self._examine(what) if what in self._receptacles else self._examine_thing(what)
        if verb == "use":
            self._states[what].add("istoggled")
            return f"You turn on the {what}."
        if verb == "slice":
            self._states[what].add("issliced")
            return f"You sliced the {what} with the {where}."
        states = self._states[what]
        states.add(_STATE_OF[verb])
        if verb != "clean":
            states.discard("iscool" if verb == "heat" else "ishot")
        return f"You {verb} the {what} using the {where}."

    def _commands(self) -> set[str]:
        commands = {"look", "inventory", "help"}
        commands |= {f"go to {r.name}" for r in self.household.receptacles if not self._is_here(r.name)}
        commands |= {f"examine {self.holding}"} if self.holding else set()
        for receptacle in self._here():
            commands.add(f"examine {receptacle.name}")
            commands |= self._commands_at(receptacle)
        return commands

    def _commands_at(self, receptacle: Receptacle) -> set[str]:
        place, commands = receptacle.name, set()
        is_open = not receptacle.openable or place in self._open
        if receptacle.openable:
            commands.add(f"{'close' if is_open else 'open'} {place}")
        contents = self.contents(place)
        commands |= {f"use {name}" for name in contents if "toggleable" in self._states[name]}
        held = self.holding
        if held is None:
            pickupable = [name for name in contents if "pickupable" in self._states[name]] if is_open else []
            return commands | {f"take {name} from {place}" for name in pickupable}
        if is_open and self._things[held].type in receptacle.accepts:
            commands.add(f"move {held} to {place}")
        for verb, tool in _TOOLS.items():
            if receptacle.type == tool and _FLAG_OF[verb] in self._states[held]:
                commands.add(f"{verb} {held} with {place}")
        if self._things[held].type in _KNIVES:
            commands |= {f"slice {name} with {held}" for name in contents if "sliceable" in self._states[name]}
        return commands

    def _here(self) -> list[Receptacle]:
        return [r for r in self.household.receptacles if self._is_here(r.name)]

    def _is_here(self, place: str | None) -> bool:
        if self.place is None or place is None:
            return False
        return self._receptacles[place].location == self._receptacles[self.place].location

    def _look(self) -> str:
        if self.place is None:  # the grammar lists what is at the agent's location, which is no receptacle's
            return f"{_MIDDLE} nothing."
        return f"You are facing the {_listed(r.name for r in self._here())}. Next to it, you see nothing."

    def _examine(self, place: str) -> str:
        contents = _listed(f"a {name}" for name in self.contents(place))
        if not self._receptacles[place].openable:
            return f"On the {place}, you see {contents}."
        if place in self._open:
            return f"The {place} is open. In it, you see {contents}."
        return f"The {place} is closed."

    def _examine_thing(self, name: str) -> str:
        states = self._states[name]
        words = [word for word in ("ishot", "iscool", "isclean") if word in states]
        adjectives = " and ".join(word[2:] for word in words)
        if "issliced" in states:
            return f"This is a {adjectives + ' ' if adjectives else ''}sliced {name}."
        if adjectives:
            return f"This is a {'cold' if words == ['iscool'] else adjectives} {name}."
        return f"There's nothing special about {name}."


def _listed(names: Iterable[str]) -> str:
    """Return the grammar's words for a list."""
    items = list(names)
    if len(items) < 2:
        return items[0] if items else "nothing"
    return f"{', '.join(items[:-1])}, and {items[-1]}"
