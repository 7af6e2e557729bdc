"""TextWorld's PDDL engine for ALFWorld's games.

State and grammar are TextWorld's. Its `PddlEnv` is not used: it translates a problem four times per game, parses the
grammar for each, and changes `sys.argv` of the process.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from lit_rft.envs.alfworld.games import MOVE, number_names
from lit_rft.envs.alfworld.grammar import check_game, load_logic, task_text
from lit_rft.envs.alfworld.world import NOTHING_HAPPENS

_PLAIN = frozenset("#[]|")  # characters that only templates with grammar contain


class TextWorldGame:
    """Plays the contents of game files, one after another. A process can have only one.

    It cannot be stopped from within: use it in a worker process, whose calls have time limits.

    Attributes:
        put: the game's form of the command to put an object down, with the fields ``o`` and ``r``.

    Raises:
        ImportError: the extra ``lit-rft[alfworld]`` is missing.
    """

    def __init__(self) -> None:
        self.put = ""
        self._library: Any = None
        self._commands: dict[str, Any] = {}

    def start(self, data: Mapping[str, Any]) -> tuple[str, str]:
        """Start a game.

        Args:
            data: contents of a ``game.tw-pddl`` file.

        Returns:
            The first observation (with "Welcome" and without the task), and the task in words.

        Raises:
            ValueError: the game is corrupt, or contains expressions that are not allowed.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("TextWorld's engine cannot run in threads: set acting.pool.threads to false")
        check_game(data)
        self._logic = load_logic(data["pddl_domain"], data["grammar"])
        put = self._logic.actions.get("putobject")
        self.put = put.template if put is not None else MOVE
        try:
            self._state = self._make_state(data["pddl_problem"])
        except (Exception, SystemExit) as error:  # the translator's exceptions have no common base class
            raise ValueError(f"pddl_problem: cannot be read ({type(error).__name__}: {str(error)[:200]})") from error
        self._entities = self._make_entities()
        self._note_commands()
        return self._derive("#intro#", {}), task_text(data["grammar"])

    def step(self, command: str) -> str:
        """Execute one command, and return the reply."""
        action = self._commands.get(command)
        if action is None:
            return NOTHING_HAPPENS
        self._state.apply(action)
        reply = self._derive(action.feedback_rule, action.mapping)
        self._note_commands()
        return reply

    def won(self) -> bool:
        """Return whether the goal is reached."""
        return bool(self._state.check_goal())

    def admissible(self) -> list[str]:
        """Return all commands that are possible now, sorted."""
        return sorted(self._commands)

    def facts(self) -> set[tuple[str, ...]]:
        """Return the current facts by name, with the names of their objects, without agents."""
        return {
            (fact.name, *(self._entities[v.name].name for v in fact.arguments if v.type != "agent"))
            for fact in self._state.facts
        }

    def _make_state(self, problem: str) -> Any:
        import fast_downward
        from textworld.envs.pddl.logic import PddlState

        if self._library is None:
            self._library = fast_downward.load_lib()
        with _one_translation(fast_downward):
            return PddlState(_WithoutReplanning(self._library), problem, self._logic)

    def _make_entities(self) -> dict[str, Any]:
        from textworld.generator.game import EntityInfo

        variables = {v.name: v for fact in self._state.facts for v in fact.arguments}
        names = number_names(variables)
        entities = {}
        for identifier, variable in variables.items():
            entity = EntityInfo(identifier, variable.type)
            entity.name, entity.definite, entity.indefinite = names.get(identifier, identifier), "the", "a"
            entities[identifier] = entity
        return entities

    def _note_commands(self) -> None:
        """Record the possible commands. Of two actions with the same command the first counts."""
        self._commands = {}
        for action in self._state.all_applicable_actions():
            fields = {placeholder.name: self._entities[v.name].name for placeholder, v in action.mapping.items()}
            template = action.command_template
            if not _PLAIN.isdisjoint(template):
                template = self._derive(template, action.mapping)
            self._commands.setdefault(template.format(**fields), action)

    def _derive(self, rule: str, mapping: Mapping[Any, Any]) -> str:
        """Return the text that the grammar derives from a rule."""
        context = {
            "state": self._state,
            "facts": list(self._state.facts),
            "variables": {placeholder.name: self._entities[v.name] for placeholder, v in mapping.items()},
            "mapping": mapping,
            "entity_infos": self._entities,
        }
        text: str = self._logic.grammar.derive(rule, context)
        return text


class _WithoutReplanning:
    """The engine's library without its planner, which has no time limit and is not used."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def load_sas_replan(self, sas: bytes) -> None:
        """Load nothing."""


@contextlib.contextmanager
def _one_translation(fast_downward: Any) -> Iterator[None]:
    """Skip the second translation, which is for the planner, and undo the first one's changes to the process."""
    translate, arguments, stdout = fast_downward.pddl2sas, sys.argv, sys.stdout

    def pddl2sas(domain: str, problem: str, verbose: bool = False, optimize: bool = False) -> tuple[Any, str]:
        return (None, "") if optimize else translate(domain, problem, verbose=verbose)

    fast_downward.pddl2sas = pddl2sas
    try:
        yield
    finally:
        fast_downward.pddl2sas, sys.argv, sys.stdout = translate, arguments, stdout
