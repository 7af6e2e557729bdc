"""Sources of games: ALFWorld's own, and generated households. Both play on a `Simulator`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lit_rft.envs.alfworld.engine import TextWorldGame
from lit_rft.envs.alfworld.games import MOVE, Household, game_data
from lit_rft.envs.alfworld.generator import Layout, generate
from lit_rft.envs.alfworld.grammar import import_textworld
from lit_rft.envs.alfworld.resources import load_resources
from lit_rft.envs.alfworld.world import World

SYNTHETIC = "alfworld-synthetic"  # in ids, tables and records: results on generated games are not results on ALFWorld


class Simulator(Protocol):
    """A game in progress: `World` or `TextWorldGame`."""

    def step(self, command: str) -> str: ...

    def won(self) -> bool: ...

    def admissible(self) -> list[str]: ...

    def facts(self) -> set[tuple[str, ...]]: ...


@dataclass(frozen=True)
class Start:
    """A game at its start.

    Attributes:
        simulator: plays it.
        observation: the first observation.
        description: the task in words.
        put: the game's form of the command to put an object down, with the fields ``o`` and ``r``.
    """

    simulator: Simulator
    observation: str
    description: str
    put: str = MOVE


class GameSource(Protocol):
    """Starts games from the options of an episode."""

    @property
    def name(self) -> str:
        """``env`` of the records."""

    @property
    def version(self) -> str:
        """``env_version`` of the records."""

    def check(self) -> None:
        """Check that what the games need is installed.

        Raises:
            ImportError: the extra ``lit-rft[alfworld]`` is missing.
        """

    def start(self, options: Mapping[str, Any]) -> Start:
        """Start a game.

        Raises:
            ValueError: an option is missing, unknown or out of range, or the game is damaged.
        """

    def household(self, options: Mapping[str, Any]) -> Household:
        """Return the game as data, for experts."""


@dataclass
class SyntheticGames:
    """Generated games; a `GameSource`.

    Attributes:
        layout: settings of the households.
        textworld: play on TextWorld's engine, some hundred times slower, instead of the equivalent in plain Python.
    """

    layout: Layout = field(default_factory=Layout)
    textworld: bool = False
    name: str = SYNTHETIC
    _engine: TextWorldGame | None = field(default=None, repr=False, compare=False)

    @property
    def version(self) -> str:
        return load_resources().version

    def check(self) -> None:
        load_resources()
        if self.textworld:
            import_textworld()

    def start(self, options: Mapping[str, Any]) -> Start:
        household = self.household(options)
        description = f"{household.description}."
        if not self.textworld:
            world = World(household)
            return Start(world, world.intro(), description)
        self._engine = self._engine or TextWorldGame()
        text, _ = self._engine.start(game_data(household, load_resources()))
        return Start(self._engine, first_observation(text), description)

    def household(self, options: Mapping[str, Any]) -> Household:
        if options.keys() != {"task", "split", "seed"}:
            raise ValueError(
                "reset needs options={'task': name, 'split': name, 'seed': number}; "
                f"got the options {sorted(map(str, options))}"
            )
        return generate(options["task"], options["split"], options["seed"], self.layout, load_resources())


def first_observation(text: str) -> str:
    """Return the first observation in a game's first text ("Welcome", the room, the task).

    Raises:
        ValueError: the text has no such paragraph.
    """
    for paragraph in text.split("\n\n"):
        if paragraph.strip().startswith("You are"):
            return paragraph.strip()
    raise ValueError(f"expected a first text with a paragraph 'You are ...', got {text[:200]!r}")
