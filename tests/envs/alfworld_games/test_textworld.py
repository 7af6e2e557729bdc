"""TextWorld's engine on games in ALFWorld's file format, and the checks of such files."""

from __future__ import annotations

import random
import sys
import threading
from typing import Any

import pytest

from lit_rft.envs.alfworld import Layout, SyntheticSuite, generate, solve
from lit_rft.envs.alfworld.engine import TextWorldGame
from lit_rft.envs.alfworld.explorer import Mistakes
from lit_rft.envs.alfworld.games import TASKS, game_data
from lit_rft.envs.alfworld.grammar import check_expression, check_game, load_logic
from lit_rft.envs.alfworld.resources import load_resources
from lit_rft.envs.alfworld.world import NOTHING_HAPPENS, World

FACTS = ("holds", "inreceptacle", "isclean", "ishot", "iscool", "istoggled")
SMALL = Layout(max_per_type=1, max_instances=2)


@pytest.fixture(scope="module")
def engine() -> TextWorldGame:
    """One engine for all games, as in a worker."""
    return TextWorldGame()


def game(task: str = TASKS[0], seed: int = 0) -> dict[str, Any]:
    return game_data(generate(task, "train", seed, SMALL, load_resources()), load_resources())


@pytest.mark.parametrize("task", TASKS)
def test_plain_python_and_textworld_agree_word_for_word(extra: None, engine: TextWorldGame, task: str) -> None:
    household = generate(task, "train", 1, SMALL, load_resources())
    world, rng = World(household), random.Random(task)
    arguments = list(sys.argv)
    observation, description = engine.start(game_data(household, load_resources()))
    assert sys.argv == arguments
    assert world.intro() in observation and description == f"{household.description}."
    asides = ("examine", "look", "inventory")
    for action in solve(household, mistakes=Mistakes(0.25), key=task)[0]:
        aside = rng.choice([command for command in world.admissible() if command.startswith(asides)])
        for command in (aside, action):
            assert engine.step(command) == world.step(command), command
            assert engine.admissible() == world.admissible(), command
            assert engine.won() == world.won()
            assert {fact for fact in engine.facts() if fact[0] in FACTS} == world.facts()
    assert world.won()


def test_the_suite_plays_on_textworld(extra: None) -> None:
    suite = SyntheticSuite(max_receptacles=1, textworld=True)
    plain = SyntheticSuite(max_receptacles=1)
    spec = suite.episodes("dev", limit=1)[-1]
    envs = [suite.make_env(), plain.make_env()]
    (observation, info), (same, info_of_plain) = (env.reset(options=spec.options) for env in envs)
    assert observation == same and info == info_of_plain
    for action in suite.expert.actions(spec, info):
        answers = [env.step(action) for env in envs]
        assert answers[0] == answers[1]
    assert answers[0][2]


def test_the_wheels_grammar_passes_the_check(extra: None) -> None:
    resources = load_resources()
    logic = load_logic(resources.domain, resources.grammar)
    other = load_logic(resources.domain, resources.grammar.replace("UNKNOWN GOAL", "put a mug in desk"))
    assert other is logic  # games differ in the task only: one parse serves them all


@pytest.mark.parametrize("expression", ["r.name", "o.indefinite + ' ' + o.name", "r.name or r.id", "o", " o "])
def test_expressions_that_read_names(expression: str) -> None:
    check_expression(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd').read()",
        "o.__class__",
        "o.name.__class__",
        "o.name.format(o)",
        "context['state']",
        "[x for x in o.name]",
        "o.name * 9",
        "9 ** 9",
        "lambda: o",
        "f'{o.name}'",
        "o + p",
        "",
        "o.name +",
        "(" * 500 + "o" + ")" * 500,
    ],
)
def test_other_expressions_are_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_expression(expression)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("You close the {r.name}.", "You close {__import__('os').getpid()}."),
        ("You close the {r.name}.", "You close the [{r.name.upper() | holds(a:agent, o:object)}]."),
        ('template :: "open {r}"', 'template :: "open {r.__class__}"'),
        ('feedback :: "#OpenObject.feedback#"', 'feedback :: "{r.__init__}"'),
    ],
)
def test_a_grammar_with_a_program_is_refused(extra: None, engine: TextWorldGame, old: str, new: str) -> None:
    data = game()
    assert old in data["grammar"]
    with pytest.raises(ValueError, match="grammar: expected names of entities"):
        engine.start({**data, "grammar": data["grammar"].replace(old, new)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grammar": None}, "expected a game with the text 'grammar', got NoneType"),
        ({"pddl_problem": 7}, "expected a game with the text 'pddl_problem', got int"),
        ({"pddl_problem": "(" + "x" * 300 + ")"}, "expected names of at most 200 characters, got xxx"),
        ({"pddl_domain": "x" * (2**21 + 1)}, "pddl_domain: expected at most 2097152 characters, got 2097153"),
    ],
)
def test_damaged_games_are_refused(change: dict[str, Any], message: str) -> None:
    data = {"pddl_domain": "", "pddl_problem": "", "grammar": "", **change}
    with pytest.raises(ValueError, match=message):
        check_game(data)


def test_threads_are_refused(extra: None, engine: TextWorldGame) -> None:
    """Environment pools can run environments in threads, which the engine's library does not survive."""
    messages: list[str] = []

    def start() -> None:
        with pytest.raises(ValueError, match=r"set acting.pool.threads to false") as error:
            engine.start(game())
        messages.append(str(error.value))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(messages) == 1


def test_texts_that_are_no_pddl_are_refused(extra: None, engine: TextWorldGame) -> None:
    data = game()
    with pytest.raises(ValueError, match="grammar: cannot be read"):
        engine.start({**data, "grammar": "no grammar"})
    for problem in ("(define (problem", data["pddl_problem"].replace("(:init", "(:unit")):
        with pytest.raises(ValueError, match="pddl_problem: cannot be read"):
            engine.start({**data, "pddl_problem": problem})
    assert "You are" in engine.start(data)[0]  # and the engine is as good as before
    assert engine.step("go to the moon") == NOTHING_HAPPENS
