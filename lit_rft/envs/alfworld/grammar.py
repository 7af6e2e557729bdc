"""Checks of game files for TextWorld.

TextWorld evaluates the Python expressions in a game's grammar. Only expressions that read the names of entities are
accepted, so that a game file is data and not a program.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from typing import Any

from lit_rft.envs.alfworld.resources import EXTRA

_ATTRIBUTES = {"name", "id", "indefinite", "definite"}
_ALLOWED = (ast.Expression, ast.BinOp, ast.Add, ast.BoolOp, ast.Or, ast.Load)
_FIELD = re.compile(r"[a-z]\w*")  # of a template: `take {o} from {r}`
_MAX_NAME = 200  # characters; the engine's library holds an action with its four arguments in 1024 bytes
_MAX_PART = 2**21  # characters of one part of a game
_TASK = re.compile(r"(?<=Your task is to: )[^\"\\]*")


def check_game(data: Mapping[str, Any]) -> None:
    """Check that a game file contains texts of a supported size.

    Raises:
        ValueError: a part is missing, not a text or too large, or a name is too long.
    """
    for part in ("pddl_domain", "pddl_problem", "grammar"):
        if not isinstance(data.get(part), str):
            raise ValueError(f"expected a game with the text {part!r}, got {type(data.get(part)).__name__}")
        if len(data[part]) > _MAX_PART:
            raise ValueError(f"{part}: expected at most {_MAX_PART} characters, got {len(data[part])}")
    if match := re.search(rf"[^\s()]{{{_MAX_NAME + 1},}}", data["pddl_problem"]):
        raise ValueError(f"pddl_problem: expected names of at most {_MAX_NAME} characters, got {match[0][:40]}...")


def check_expression(expression: str) -> None:
    """Check an expression of a grammar: names of entities and texts, joined by ``+`` and ``or``.

    Raises:
        ValueError: it is anything else.
    """
    try:
        nodes = list(ast.walk(ast.parse(expression.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"expected an expression, got {expression[:80]!r} ({error})") from error
    reads = [
        n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.attr in _ATTRIBUTES
    ]
    fields = [n.body for n in nodes if isinstance(n, ast.Expression) and isinstance(n.body, ast.Name)]
    allowed = {id(node) for node in [*reads, *(read.value for read in reads), *fields]}
    for node in nodes:
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if not (is_text or isinstance(node, _ALLOWED) or id(node) in allowed):
            raise ValueError(
                f"expected names of entities ({', '.join(sorted(_ATTRIBUTES))}) joined by + and or, "
                f"got the expression {expression[:80]!r}"
            )


def task_text(grammar: str) -> str:
    """Return the task in words from a game's grammar; empty if there is none."""
    match = _TASK.search(grammar)
    return match[0] if match else ""


def load_logic(domain: str, grammar: str) -> Any:
    """Load and check TextWorld's `GameLogic` of a game; its intro does not contain the task (see `task_text`).

    Games of one release differ only in the task, so most are cached.

    Raises:
        ImportError: the extra ``lit-rft[alfworld]`` is missing.
        ValueError: the grammar cannot be parsed, or contains expressions that are not allowed.
    """
    return _load_logic(domain, _TASK.sub("", grammar, count=1))


@functools.lru_cache(maxsize=4)
def _load_logic(domain: str, grammar: str) -> Any:
    pddl_logic, textgen = import_textworld()
    try:
        logic = pddl_logic.GameLogic(domain=domain, grammar=grammar)
        symbols = [symbol for rules in logic.grammar._rules.values() for rule in rules for symbol in rule.rhs]
        for action in logic.actions.values():
            for text in (action.template, action.feedback_rule):
                symbols += textgen._parse_and_convert(text, rule_name="symbols")
    except Exception as error:  # the parser's exceptions have no common base class
        raise ValueError(f"grammar: cannot be read ({type(error).__name__}: {str(error)[:200]})") from error
    try:
        for symbol in symbols:
            _check_symbol(symbol)
    except ValueError as error:
        raise ValueError(f"grammar: {error}") from error
    return logic


def _check_symbol(symbol: Any) -> None:
    kind = type(symbol).__name__
    if kind == "EvalSymbol":
        check_expression(symbol.expression)
    elif kind == "ListSymbol":
        _check_symbol(symbol.symbol)
    elif kind == "ConditionalSymbol":
        _check_symbol(symbol.expression)
    elif kind not in ("TerminalSymbol", "NonterminalSymbol"):
        raise ValueError(f"unknown symbol {kind}")


def import_textworld() -> tuple[Any, Any]:
    """Import the engine's modules of rules and of texts.

    Raises:
        ImportError: the extra ``lit-rft[alfworld]`` is missing.
    """
    try:
        from textworld.envs.pddl import logic, textgen
    except ImportError as error:
        raise ImportError(f"ALFWorld's games are played with TextWorld: pip install '{EXTRA}' ({error})") from error
    return logic, textgen
