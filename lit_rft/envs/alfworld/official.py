"""ALFWorld's own games, in the folder of `alfworld-download`."""

from __future__ import annotations

import functools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_rft.envs.alfworld.engine import TextWorldGame
from lit_rft.envs.alfworld.games import MOVE, TASKS, Goal, Household, Receptacle, Thing, number_names
from lit_rft.envs.alfworld.grammar import check_game, import_textworld, task_text
from lit_rft.envs.alfworld.resources import load_resources
from lit_rft.envs.alfworld.sources import Start, first_observation
from lit_rft.envs.base import check_split

# split -> number of games with the six tasks in release 2.1.1 and later
OFFICIAL_GAMES = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
_FOLDER = "json_2.1.1"
_GAME, _TASK = "game.tw-pddl", "traj_data.json"
_FACT = re.compile(r"\(\s*([\w-]+)((?:\s+[^\s()]+)*)\s*\)")
_PUT_TEMPLATE = re.compile(r'\baction\s+PutObject\s*\{\s*template\s*::\s*"([^"\n]*)"')
_FIELD = re.compile(r"\{[^}]*\}?")
_DEFAULT_FOLDER = "~/.cache/alfworld"  # of alfworld-download


def data_folder(data: str = "") -> Path:
    """Return the folder of ALFWorld's data.

    Args:
        data: the folder; empty for ``$ALFWORLD_DATA``, else that of `alfworld-download`.

    Raises:
        ValueError: it has no games.
    """
    folder = Path(data or os.environ.get("ALFWORLD_DATA") or _DEFAULT_FOLDER).expanduser()
    if not (folder / _FOLDER).is_dir():  # importing alfworld sets the variable and creates an empty folder
        raise ValueError(
            f"no ALFWorld games in {folder}: expected a folder {_FOLDER} there. Download them with alfworld-download "
            "and set ALFWORLD_DATA, or use generated games (lit_rft.envs.alfworld.SyntheticSuite)"
        )
    return folder


def official_games(folder: Path, split: str) -> dict[str, list[str]]:
    """Return the games of a split: task -> paths relative to the folder, sorted.

    As counted by ALFWorld: with one of the six tasks, without movable receptacles or slicing, and solvable.

    Raises:
        ValueError: unknown split, or a file that cannot be read.
    """
    check_split(split, OFFICIAL_GAMES, "ALFWorld")
    return _official_games(folder.resolve(), split)


@functools.lru_cache(maxsize=8)
def _official_games(folder: Path, split: str) -> dict[str, list[str]]:
    games: dict[str, list[str]] = {task: [] for task in TASKS}
    for path in (folder / _FOLDER / split).rglob(_TASK):
        game = path.with_name(_GAME)
        if "movable" in str(path) or "Sliced" in str(path) or not game.exists():
            continue
        task = _read(path).get("task_type")
        if task in games and _read(game).get("solvable") is True:
            games[task].append(game.relative_to(folder).as_posix())
    return {task: sorted(paths) for task, paths in games.items()}


@dataclass
class OfficialGames:
    """ALFWorld's games, on TextWorld; a `GameSource`.

    Attributes:
        data: see `data_folder`.
    """

    data: str = ""
    name: str = "alfworld"
    _engine: TextWorldGame | None = field(default=None, repr=False, compare=False)

    @property
    def version(self) -> str:
        return load_resources().version

    def check(self) -> None:
        load_resources()
        import_textworld()

    def start(self, options: Mapping[str, Any]) -> Start:
        game = _read(self._path(options))
        self._engine = self._engine or TextWorldGame()
        text, _ = self._engine.start(game)
        return Start(self._engine, first_observation(text), task_text(game["grammar"]), self._engine.put)

    def household(self, options: Mapping[str, Any]) -> Household:
        path = self._path(options)
        return read_household(_read(path), _read(path.with_name(_TASK)))

    def _path(self, options: Mapping[str, Any]) -> Path:
        if options.keys() != {"game"} or not isinstance(options["game"], str):
            raise ValueError(f"reset needs options={{'game': path}}; got the options {sorted(map(str, options))}")
        path = Path(options["game"])
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"game must be a path within the folder of ALFWorld's data, got {options['game']!r}")
        return data_folder(self.data) / path


def read_household(game: Mapping[str, Any], trial: Mapping[str, Any]) -> Household:
    """Convert a game file to data for experts.

    Args:
        game: contents of ``game.tw-pddl``.
        trial: contents of ``traj_data.json``, with the goal.

    Raises:
        ValueError: either is corrupt.
    """
    check_game(game)
    goal = _goal(trial)
    facts: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name, arguments in _facts(game["pddl_problem"]):
        facts[name].append(arguments)
    names = number_names({a for many in facts.values() for arguments in many for a in arguments})
    description = task_text(game["grammar"]).rstrip(".")
    receptacles, things = tuple(_receptacles(facts, names)), tuple(_things(facts, names))
    return Household(0, goal, description, receptacles, things, _put_form(game["grammar"]))


def _put_form(grammar: str) -> str:
    """Return the form of the command to put an object down; the releases of the games differ in it."""
    match = _PUT_TEMPLATE.search(grammar)
    return match[1] if match and sorted(_FIELD.findall(match[1])) == ["{o}", "{r}"] else MOVE


def _goal(trial: Mapping[str, Any]) -> Goal:
    parameters = trial.get("pddl_params")
    if not isinstance(parameters, dict) or trial.get("task_type") not in TASKS:
        raise ValueError(f"{_TASK}: expected task_type (one of {', '.join(TASKS)}) and pddl_params")
    texts = [parameters.get(name, "") for name in ("object_target", "parent_target", "toggle_target")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{_TASK}: expected texts in pddl_params, got {texts!r}")
    target, receptacle, lamp = (text.lower() for text in texts)
    if trial["task_type"] == "look_at_obj_in_light":
        return Goal(trial["task_type"], target, "", lamp)
    return Goal(trial["task_type"], target, receptacle)


def _facts(problem: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the facts of a problem's ``:init`` part; PDDL has no upper case."""
    text = re.sub(r";[^\n]*", "", problem).lower()
    start, end = text.find("(:init"), text.find("(:goal")
    if start < 0 or end < start:
        raise ValueError("pddl_problem: expected (:init ...) and then (:goal ...)")
    for match in _FACT.finditer(text, start + len("(:init"), end):
        yield match[1], tuple(match[2].split())


def _receptacles(facts: Mapping[str, list[tuple[str, ...]]], names: Mapping[str, str]) -> Iterator[Receptacle]:
    accepted: dict[str, set[str]] = defaultdict(set)  # type of receptacle -> types of objects
    for arguments in facts["cancontain"]:
        accepted[arguments[0]].add(arguments[1].removesuffix("type"))
    location = _pairs(facts["receptacleatlocation"])
    openable, opened = (set(facts[name]) for name in ("openable", "opened"))
    for identifier, kind in sorted(_pairs(facts["receptacletype"]).items()):
        name = names[identifier]
        yield Receptacle(
            id=identifier,
            name=name,
            type=name.rpartition(" ")[0],
            openable=(identifier,) in openable,
            location=location.get(identifier, identifier),
            accepts=frozenset(accepted[kind]),
            opened=(identifier,) in opened,
        )


def _things(facts: Mapping[str, list[tuple[str, ...]]], names: Mapping[str, str]) -> Iterator[Thing]:
    place = _pairs(facts["inreceptacle"])
    flags: dict[str, set[str]] = defaultdict(set)
    for flag in ("pickupable", "cleanable", "heatable", "coolable", "toggleable", "sliceable", "isclean", "ishot",
                 "iscool", "istoggled", "issliced"):  # fmt: skip
        for arguments in facts[flag]:
            flags[arguments[0]].add(flag)
    for identifier in sorted(_pairs(facts["objecttype"])):
        name = names[identifier]
        where = names.get(place.get(identifier, ""))
        yield Thing(identifier, name, name.rpartition(" ")[0], where, frozenset(flags[identifier]))


def _pairs(facts: list[tuple[str, ...]]) -> dict[str, str]:
    return {arguments[0]: arguments[1] for arguments in facts}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, got {type(content).__name__}")
    return content
