"""Conditions that ScienceWorld reports as achieved: those of the goal, and rooms entered."""

from __future__ import annotations

import re

from lit_rft.episodes import Achieved

_CONDITION = re.compile(r"(?P<number>\d+)\t(?P<done>true|false)\t *Goal(?P<kind>\w+)\t(?P<text>.*)")
_OPTIONAL_HEADING = "Unordered and Optional Subgoals:"
_ROOM = re.compile(r"(?:This (?:room|outside location) is called the|You (?:move|teleport) to the) (.+?)\.")


def completed_conditions(progress: str) -> list[Achieved]:
    """Parse the completed conditions in the simulator's goal-progress text.

    Returns:
        Sequential conditions (key ``prog:<i>``) and then unordered, optional ones (``opt:<i>``), each in its order.
        The few without a description are named by their kind ("find inclined plane").
    """
    prefix, completed = "prog", []
    for line in progress.splitlines():
        if line == _OPTIONAL_HEADING:
            prefix = "opt"
        match = _CONDITION.fullmatch(line)
        if match and match["done"] == "true":
            text = match["text"].strip() or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", match["kind"]).lower()
            completed.append(Achieved(key=f"{prefix}:{match['number']}", text=text))
    return completed


def room_in(observation: str) -> str | None:
    """Return the room in an observation of looking around or moving, else None."""
    match = _ROOM.match(observation)
    return match[1] if match else None


class AchievedTracker:
    """Reports each condition of an episode once, and each room whenever it is entered."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._room: str | None = None

    def update(self, observation: str, progress: str) -> list[Achieved]:
        """Return the conditions that are new since the last call.

        Args:
            observation: the simulator's observation after the action.
            progress: its goal-progress text after the action.
        """
        new = [item for item in completed_conditions(progress) if item.key not in self._seen]
        self._seen.update(item.key for item in new)
        room = room_in(observation)
        if room is not None and room != self._room:
            new.append(Achieved(key=f"room:{room}", text=f"go to {room}"))
            self._room = room
        return new
