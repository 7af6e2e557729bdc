"""Mathematics as an environment: known solutions, lines that a verifier judges, splits without overlap."""

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import main

from lit_rft.agents import HierarchicalAgent
from lit_rft.envs import EpisodeEnv, EpisodeSpec, check_env
from lit_rft.envs.collect import collect_expert_episodes, collect_perturbed_episodes
from lit_rft.envs.mathematics import (
    ExpressionProblem,
    Expressions,
    ExpressionSuite,
    PartialResults,
    ProcessReward,
    generate_problem,
    read_line,
)
from lit_rft.envs.mathematics.env import expert
from lit_rft.envs.mathematics.problems import evaluate, next_line, rewrite
from lit_rft.envs.perturbation import Perturbation
from lit_rft.episodes import intrinsic_rewards

PROBLEM = "( 3 + 4 ) * 2 - 5"


def environment(problem: str = PROBLEM, **settings: Any) -> Expressions:
    """`Expressions` at the start of a problem."""
    env = Expressions(**settings)
    env.reset(seed=0)
    env.problem, env.expression = ExpressionProblem(problem), problem
    return env


def play(env: Expressions, *lines: str) -> tuple[list[float], dict[str, Any], bool]:
    """Rewards, last info and whether the last line ended the episode."""
    results = [env.step(line) for line in lines]
    return [result[1] for result in results], results[-1][4], results[-1][2]


@pytest.mark.parametrize("seed", range(100))
def test_values_and_solutions_are_right(seed: int) -> None:
    """Against Python's own arithmetic, at each line of the expert."""
    rng = np.random.default_rng(seed)
    steps, highest = int(rng.integers(1, 8)), int(rng.integers(1, 30))
    problem = generate_problem(rng, steps, highest=highest)
    value, expression = eval(problem.text), problem.text
    assert problem.value == value and problem.steps == steps and 0 <= value <= highest
    for number in range(steps):
        line = next_line(expression)
        assert line is not None and line.is_right and 0 <= line.result <= highest
        rewritten = rewrite(expression, line)
        assert rewritten is not None and eval(rewritten) == evaluate(rewritten) == value
        assert ExpressionProblem(rewritten).steps == steps - number - 1
        expression = rewritten
    assert expression == str(value) and next_line(expression) is None


def test_only_parts_that_may_be_computed_now_are_the_experts() -> None:
    """Also where another order happens to give the same value."""
    firsts = {
        "3 + 4 * 1": "4 * 1 = 4",
        "8 - 3 + 2": "8 - 3 = 5",
        "2 * ( 1 + 1 ) * 3": "1 + 1 = 2",
        "8 - ( 2 + 3 * 1 )": "3 * 1 = 3",
        "2 * 3 * 1": "2 * 3 = 6",
        "-1 + 2": "-1 + 2 = 1",
    }
    for expression, text in firsts.items():
        line = next_line(expression)
        assert line is not None and line.text == text


@pytest.mark.parametrize("text", ["", "3 +", "( 3 + 4", "3 4", "3 + 4 )", "a + 1", "3 ** 4"])
def test_other_texts_are_no_expressions(text: str) -> None:
    with pytest.raises(ValueError, match="expected an expression"):
        evaluate(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 4 = 7", (3, "+", 4, 7)),
        ("  3 + 4 = 7 \n", (3, "+", 4, 7)),
        ("3 - -4 = -1", (3, "-", -4, -1)),
        ("3 + 4 = 8", (3, "+", 4, 8)),
        ("3+4=7", None),
        ("3 + 4", None),
        ("3 + 4 = 7.", None),
        ("3 / 4 = 1", None),
        ("3 + 4 = 7\n7 * 2 = 14", None),
        ("3 + 4 = " + "9" * 5000, None),
        ("__import__('os').abort()", None),
        ("² + 1 = 3", None),
        ("", None),
    ],
)
def test_lines_are_read_and_never_evaluated(text: str, expected: tuple[Any, ...] | None) -> None:
    assert read_line(text) == expected


def test_the_solution_earns_one_in_equal_shares_and_the_answer() -> None:
    solution = ("3 + 4 = 7", "7 * 2 = 14", "14 - 5 = 9")
    rewards, info, done = play(environment(), *solution)
    assert rewards == pytest.approx([1 / 6, 1 / 6, 1 / 6 + 1 / 2]) and done
    assert (info["score"], info["success"], info["metrics"]) == (1.0, True, {"right_steps": 1.0})
    assert play(environment(process_weight=0.0), *solution)[0] == [0.0, 0.0, 1.0]
    assert sum(play(environment(process_weight=1.0), *solution)[0]) == pytest.approx(1.0)


def test_a_mistake_is_in_all_that_is_left() -> None:
    env = environment()
    assert env.step("3 + 4 = 8")[0] == "8 * 2 - 5"
    rewards, info, done = play(env, "8 * 2 = 16", "16 - 5 = 11")
    assert rewards == pytest.approx([-1 / 6, -1 / 6]) and done
    assert (info["score"], info["success"], info["metrics"]) == (0.0, False, {"right_steps": 0.0})
    assert info["achieved"] == [{"key": "16 - 5", "text": "compute 16 - 5"}]  # the low level did what it should
    assert play(environment(process_reward=PartialResults(0.0)), "3 + 4 = 8")[0] == [0.0]


def test_a_second_mistake_does_not_undo_the_first() -> None:
    rewards, info, done = play(environment(), "3 + 4 = 8", "8 * 2 = 14", "14 - 5 = 9")
    assert rewards == pytest.approx([-1 / 6, -1 / 6, -1 / 6 + 1 / 2]) and done
    assert (info["score"], info["metrics"]) == (1.0, {"right_steps": 0.0})


def test_a_part_computed_too_early_is_a_mistake_of_the_plan() -> None:
    """The line is right, and what is left has another value."""
    env = environment("3 + 4 * 2")
    observation, reward, _, _, info = env.step("3 + 4 = 7")
    assert observation == "7 * 2" and reward == -0.25
    assert [condition["text"] for condition in info["achieved"]] == ["compute 3 + 4"]
    assert environment("8 - 3 + 2").step("3 + 2 = 5")[1] == -0.25
    assert environment("3 + 2 + 8").step("2 + 8 = 10")[1] == 0.25  # any order that keeps the value is right


def test_invalid_lines_cost_and_change_nothing() -> None:
    env = environment()
    for action in ("hello", "4 * 2 = 8", "2 - 6 = -4", "3 + 4 = 7 = 7", f"3 + 4 = {10**6}", "9" * 5000, "\ud800"):
        observation, reward, done, _, info = env.step(action)
        assert observation == f"There is no such part. {PROBLEM}" and not done
        assert reward == pytest.approx(-1 / 6) and info["valid"] is False
    assert expert(observation, info) == "3 + 4 = 7"


def test_the_first_of_equal_parts_is_replaced() -> None:
    assert rewrite("1 + 1 - ( 1 + 1 )", read_line("1 + 1 = 2")) == "2 - ( 1 + 1 )"  # type: ignore[arg-type]
    assert rewrite("2 - ( 1 + 1 )", read_line("1 + 1 = 2")) == "2 - 2"  # type: ignore[arg-type]
    assert rewrite("( 2 - ( 1 + 1 ) ) * 2", read_line("2 - 1 = 1")) is None  # type: ignore[arg-type]


def test_admissible_lines_are_right_and_wrong_ones_of_all_parts() -> None:
    _, info = environment().reset(seed=0)
    env = environment("3 + 4 * 2")
    admissible = env._info()["admissible"]
    assert len(admissible) == 10 and {"3 + 4 = 7", "4 * 2 = 8", "4 * 2 = 6"} <= set(admissible)
    assert all(rewrite("3 + 4 * 2", read_line(text)) for text in admissible)  # type: ignore[arg-type]
    assert info["admissible"]


def test_the_expert_earns_the_optimum_and_random_lines_much_less() -> None:
    env, rng = EpisodeEnv(Expressions()), random.Random(0)
    totals: dict[str, list[float]] = {"expert": [], "random": []}
    players: dict[str, Callable[[str, Any], str]] = {
        "expert": expert, "random": lambda _, info: rng.choice(info["admissible"])
    }  # fmt: skip
    for name, act in players.items():
        for seed in range(150):
            observation, info = env.reset(EpisodeSpec("e", seed=seed, step_limit=12))
            total, ended = 0.0, False
            while not ended:
                observation, reward, terminated, truncated, info = env.step(act(observation, info))
                total, ended = total + reward, terminated or truncated
            totals[name].append(total)
    assert all(total == pytest.approx(1.0) for total in totals["expert"])
    assert sum(totals["random"]) / 150 < 0.3


@dataclasses.dataclass(frozen=True)
class Brevity:
    """A process reward from texts alone, as a model's would be: short lines are good ones."""

    longest: int = 9

    def __call__(self, problem: ExpressionProblem, lines: Sequence[str]) -> float:
        return 0.5 if len(lines[-1]) <= self.longest else -0.5


def test_any_process_reward_changes_rewards_and_never_scores() -> None:
    reward: ProcessReward = Brevity()
    rewards, info, _ = play(environment(process_reward=reward), "3 + 4 = 8", "8 * 2 = 1600", "1600 - 5 = 9")
    assert rewards == pytest.approx([1 / 12, -1 / 12, -1 / 12 + 1 / 2]) and info["score"] == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.5, -2])
def test_a_process_reward_out_of_range_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match=r"function must return a number in \[-1, 1\], got"):
        environment(process_reward=lambda problem, lines: value).step("3 + 4 = 7")


def test_check_env_has_nothing_to_say() -> None:
    for report in (check_env(ExpressionSuite()), check_env(Expressions, episodes=20, expert=expert)):
        assert [finding for finding in report.findings if finding.level != "note"] == []


def test_splits_have_no_problem_in_common() -> None:
    suite = ExpressionSuite(
        steps=(2, 3), longer_steps=(4,), problems={"train": 400, "dev": 60, "test": 60, "longer": 9}
    )
    problems: dict[str, set[str]] = {}
    for split in suite.problems:
        env = EpisodeEnv(suite.make_env())
        problems[split] = {env.reset(spec)[0] for spec in suite.episodes(split)}
    assert {split: len(suite.episodes(split)) for split in suite.problems} == {
        "train": 800, "dev": 120, "test": 120, "longer": 9
    }  # fmt: skip
    assert all(len(problems[split]) == len(suite.episodes(split)) for split in ("dev", "test", "longer"))
    for first, second in itertools.combinations(problems.values(), 2):
        assert not first & second
    assert len({spec.seed for split in suite.problems for spec in suite.episodes(split, limit=9)[:9]}) == 36


def test_few_expressions_are_no_endless_loop() -> None:
    few = ExpressionSuite(steps=(1,), problems={"train": 100, "dev": 100, "test": 5})
    env = EpisodeEnv(few.make_env())
    problems = [env.reset(spec)[0] for spec in few.episodes("dev")]
    assert 5 < len(problems) == len(set(problems)) < 20 and len(few.episodes("train")) == 100
    none = ExpressionSuite(steps=(1,), highest=1, problems={"test": 5})
    with pytest.raises(ValueError, match=r"split 'test', found none with steps=1 and highest=1 in 10000 attempts"):
        none.episodes("test")


def test_the_suite_has_a_task_for_each_number_of_steps() -> None:
    suite = ExpressionSuite()
    assert {spec.task for spec in suite.episodes("test", limit=2)} == {"2 steps", "3 steps"}
    assert {spec.task for spec in suite.episodes("longer", limit=2)} == {"4 steps", "5 steps"}
    (spec,) = suite.episodes("dev", tasks=["3 steps"], limit=1)
    env = EpisodeEnv(suite.make_env())
    observation, _ = env.reset(spec)
    assert ExpressionProblem(observation).steps == 3 and spec.step_limit == 12
    assert env.reset(spec)[0] == observation
    first, second = suite.episodes("dev", half="first"), suite.episodes("dev", half="second")
    assert not {s.id for s in first} & {s.id for s in second} and len(first) == len(second) == 50


def test_collected_solutions_have_a_subgoal_for_each_line(tmp_path: Path) -> None:
    """A wrong line has not completed its subgoal: the low level earns nothing for it."""
    suite = ExpressionSuite()
    specs = suite.episodes("train", limit=6)
    for episode in collect_expert_episodes(suite, specs, tmp_path / "expert.jsonl", num_workers=1, progress=False):
        assert episode.outcome.success and all(subgoal.completed for subgoal in episode.subgoals)
        assert [f"{s.goal} = " for s in episode.subgoals] == [
            f"compute {step.action.rpartition('= ')[0]}= " for step in episode.steps
        ]
        assert intrinsic_rewards(episode) == [1.0] * len(episode.steps)
        high = HierarchicalAgent(subgoal_steps=1).outcomes(episode, "high")
        assert sum(outcome.reward for outcome in high) == pytest.approx(1.0)
    medium = collect_perturbed_episodes(
        suite, specs, tmp_path / "medium.jsonl", Perturbation(0.6), num_workers=1, progress=False
    )
    pairs = [(s, step) for e in medium for s, step in zip(e.subgoals, e.steps, strict=True)]
    assert {(s.completed, bool(step.achieved)) for s, step in pairs} == {(True, True), (False, False)}
    assert all(intrinsic_rewards(e) == [float(bool(step.achieved)) for step in e.steps] for e in medium)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Expressions(steps=()), "expected steps and a process_weight"),
        (lambda: Expressions(process_weight=1.5), "got .* and 1.5"),
        (lambda: Expressions(highest=0).reset(seed=0), "highest >= 1, got . and 0"),
        (lambda: Expressions().reset(seed=0, options={"steps": "3"}), "steps >= 1.* got '3'"),
        (lambda: Expressions().reset(seed=0, options={"split": "validation"}), "split must be .* got 'validation'"),
        (lambda: PartialResults(wrong=1.0), r"wrong must be in \[-1, 1\), got 1.0"),
        (lambda: ExpressionSuite(highest=0), "highest >= 1"),
        (lambda: ExpressionSuite(problems={"valid": 3}), "got valid: 3"),
        (lambda: ExpressionSuite(step_limit=0), "step_limit must be at least 1, got 0"),
        (lambda: ExpressionSuite().episodes("valid"), "has the splits train, dev, test, longer, got 'valid'"),
    ],
)
def test_bad_arguments_are_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_command_checks_the_suite(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check-env", "lit_rft.envs.mathematics.ExpressionSuite", "--args", '{"steps": [1]}'])
    assert "0 errors, 0 warnings" in capsys.readouterr().out
