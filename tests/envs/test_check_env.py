"""`check_env` finds each fault of an environment, and nothing in one without."""

import functools
import io
import json
import re
from pathlib import Path
from typing import Any

import bad_envs
import pytest
from command import main
from rich.console import Console

from lit_rft.envs import check_env
from lit_rft.envs.checking.examiner import Examiner
from lit_rft.envs.checking.report import DEFAULTS, EnvReport, Finding, print_report
from lit_rft.envs.games import Errands, GuessNumber, KeyRooms, PriceLookup, errands, guess, prices, rooms
from lit_rft.testing import CorridorSuite


def examined(fault: str) -> list[Finding]:
    """All findings of a worker's side, without a worker."""
    examiner = Examiner(functools.partial(bad_envs.Plain, fault))
    infos = [examiner.reset(seed=0)[1], examiner.step("look")[4], examiner.step("look")[4]]
    infos += [examiner.reset(seed=0, options={"part": part})[1] for part in ("gymnasium", "close")]
    return [finding for info in infos for finding in info["findings"]]


def found(fault: str, level: str, **options: Any) -> list[tuple[str, str]]:
    """Place and message of the findings of a level."""
    report = check_env(bad_envs.Plain, {"fault": fault}, episodes=2, step_limit=4, **options)
    return [(finding.where, finding.message) for finding in report.findings if finding.level == level]


def test_nothing_is_wrong_with_a_plain_environment() -> None:
    report = check_env("bad_envs.Plain", episodes=3)
    assert report.findings == [("note", "reward", report.findings[0].message)]  # all its episodes earn 1
    assert report.name == "Plain" and report.returns == [1.0] * 3 and report.lengths == [2] * 3
    assert report.ended == [True] * 3 and report.repeatable is True
    assert report.defaults == DEFAULTS and not report.keys
    assert report.example[0][0] == "" and [text for _, text in report.example[1:]] == ["Step 1.", "Step 2."]
    assert report.steps_per_second is not None and report.resets_per_second is not None


@pytest.mark.parametrize(
    ("game", "module"),
    [(Errands, errands), (GuessNumber, guess), (KeyRooms, rooms), (PriceLookup, prices)],
    ids=lambda part: part.__name__,
)
def test_the_shipped_games_pass_with_their_experts(game: Any, module: Any) -> None:
    report = check_env(game, episodes=20, expert=module.expert)
    assert report.findings == [] or game is PriceLookup  # whose expert earns the same each time
    assert not report.errors and report.ended == [True] * 20
    assert sum(report.returns) / 20 == pytest.approx(module.optimal_return(), abs=0.25)
    assert {"task_description", "score", "admissible"} <= report.keys.keys()
    assert report.keys["score"] == "reset, step" and report.keys["task_description"] == "reset"


def test_an_expert_reads_the_same_as_in_a_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = {}
    for command in (["check-env"], ["collect", "--workers", "1", "--out", str(tmp_path / "e.jsonl")]):
        monkeypatch.setenv("INFOS", str(tmp_path / command[0]))
        main([*command, "bad_envs.Telling", "--expert", "bad_envs.write_info", "--episodes", "1", "--step_limit", "2"])
        read[command[0]] = (tmp_path / command[0]).read_text().splitlines()
    assert read["check-env"] == read["collect"] and len(read["collect"]) == 2
    assert "('answer', 7)" in read["collect"][0] and "('reason', None)" in read["collect"][1]


@pytest.mark.parametrize(
    ("fault", "where", "message"),
    [
        ("array", "reset", "expected text (str) as observation, got int"),
        ("none", "reset", "expected (observation, info), got NoneType"),
        ("no info", "reset", "expected a dictionary as info, got NoneType"),
        ("surrogate", "reset", "the observation cannot be written as UTF-8: surrogates not allowed"),
        ("four", "step", "expected (observation, reward, terminated, truncated, info), got 4 values"),
        ("nan", "reward", "expected a finite number, got nan"),
        ("text reward", "reward", "expected a finite number, got '1'"),
        ("score", "info['score']", "expected a finite number, got 'high'"),
        ("nan score", "info['score']", "expected a finite number, got nan"),
        ("success", "info['success']", "expected True or False, got 1"),
        ("admissible", "info['admissible']", "expected a list of texts, got [1]"),
        (
            "achieved",
            "info['achieved']",
            "expected a list of texts or of {'key': ..., 'text': ...}, got [{'key': 'a'}]",
        ),
        ("metrics", "info['metrics']", "expected a dictionary of finite numbers, got {'a': 'b'}"),
        (
            "lock",
            "info['lock']",
            "cannot be sent from a worker process: TypeError: cannot pickle '_thread.lock' object",
        ),
        ("close", "close()", "raised OSError: cannot close"),
    ],
)
def test_errors(fault: str, where: str, message: str) -> None:
    errors = [finding for finding in examined(fault) if finding.level == "error"]
    assert any(error.where == where and error.message.startswith(message) for error in errors), errors
    assert {error.where for error in errors} <= {where, "a second close()"}


def test_an_exception_comes_with_its_place() -> None:
    (where, message), *_ = found("raise", "error")
    assert where.startswith("step(") and "KeyError: 'lost' (" in message and "bad_envs.py:" in message
    ((where, message),) = found("constructor", "error")
    assert where == "constructor" and re.fullmatch(r"raised RuntimeError: no licence \(.*bad_envs\.py:\d+\)", message)


def test_a_reset_of_the_wrong_signature_is_shown_where_it_is_defined() -> None:
    """No line of it is reached; the library's own would be no help."""
    ((where, message),) = [(error.where, error.message) for error in check_env(bad_envs.OldReset).errors]
    assert where == "reset" and "unexpected keyword argument 'seed' (" in message and "examiner.py" not in message
    assert re.search(r"bad_envs\.py:\d+\): reset must take seed and options$", message)


def test_only_an_environment_is_played() -> None:
    report = check_env(bad_envs.NoEnv)
    expected = "expected a gymnasium.Env, got NoEnv: derive it from gymnasium.Env"
    assert report.findings == [("error", "class", expected)]


@pytest.mark.parametrize("fault", ["no reset", "raise", "four"])
def test_episodes_that_fail_have_no_figures(fault: str) -> None:
    """They earned nothing and did not end by themselves, and none of that is the environment's speed or reward."""
    report = check_env(bad_envs.Plain, {"fault": fault}, episodes=3)
    assert report.failed == 3 and report.returns == report.lengths == report.ended == []
    assert report.steps_per_second is None and (report.resets_per_second is None) == (fault == "no reset")
    assert report.errors and all(finding.level != "note" for finding in report.findings)
    assert len(report.example) == (fault != "no reset")  # the observation of its reset
    table = printed(report)
    assert "3, 0 of them ended by themselves, 3 by an error" in table and ("none started" in table) == (
        fault == "no reset"
    )


def test_text_that_cannot_be_written_is_an_error_of_step() -> None:
    report = check_env(bad_envs.Plain, {"fault": "broken step"}, episodes=2)
    expected = "the observation cannot be written as UTF-8: surrogates not allowed"
    assert [finding[1:] for finding in report.errors] == [("step", expected)]
    assert report.ended == [True] * 2 and "half a \\ud800" in printed(report)


def test_a_long_example_is_cut() -> None:
    report = EnvReport("Long", example=[("", "start"), *((f"go {n}", f"step {n}") for n in range(6))])
    table = printed(report)
    assert "step 3" in table and "step 4" not in table and "2 more steps" in table
    assert "more step" not in printed(EnvReport("Short", example=report.example[:5]))


def printed(report: EnvReport) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    print_report(report, console)
    return console.export_text()


def test_odd_actions_are_tried() -> None:
    errors = found("int only", "error", expert=str_of_one)
    assert [where for where, _ in errors] == ["step('')"]
    assert errors[0][1].startswith("raised ValueError: invalid literal for int()")


def str_of_one(observation: str, info: Any) -> str:
    return "1"


@pytest.mark.parametrize("fault", ["die", "hang", "close hangs"])
def test_an_environment_that_dies_or_hangs(fault: str) -> None:
    ((where, message),) = found(fault, "error", timeout=2.0)
    assert where == "close" if fault == "close hangs" else where.startswith("step(")
    assert message == "the worker died" if fault == "die" else "within the time limit" in message


@pytest.mark.parametrize(
    ("fault", "where", "message"),
    [
        ("empty", "reset", "neither observation nor task_description"),
        ("box", "observation_space", "expected texts (gymnasium.spaces.Text), got Discrete(3)"),
        ("flags", "terminated", "expected True or False, got 'no'"),
        ("spelling", "info['admisible']", "is not read; did you mean 'admissible'?"),
        ("no super", "gymnasium", "AssertionError: "),
    ],
)
def test_warnings(fault: str, where: str, message: str) -> None:
    findings = examined(fault)
    assert any(f.level == "warning" and f.where == where and f.message.startswith(message) for f in findings), findings
    assert all(finding.level != "error" for finding in findings)


def test_episodes_that_are_not_repeatable() -> None:
    advice = "take random choices from self.np_random, after super().reset(seed=seed)"
    assert ("reset", f"the same seed gave different first observations: {advice}") in found("unseeded", "warning")
    assert ("step", "the same seed and actions gave different answers") in found("drift", "warning")


def test_notes() -> None:
    assert ("note", "info['task_description']", "is read from reset only") in examined("late task")
    assert ("step", "no episode ended by itself within 4 steps: give the suite a step_limit") in found(
        "endless", "note"
    )
    assert not examined("")


def test_a_suite_is_checked_over_its_tasks() -> None:
    made = (make_corridor, make_corridor_untyped, functools.partial(make_corridor_untyped))
    for suite in (CorridorSuite(), CorridorSuite, "lit_rft.testing.CorridorSuite", *made):
        report = check_env(suite, episodes=4, split="dev", expert=str_right)
        assert report.name == "corridor" and report.returns == [1.0] * 4 and not report.errors
    idle = check_env(CorridorSuite(), episodes=2, expert=str_of_one)
    assert ("note", "step", "no episode ended by itself within 6 steps") in idle.findings  # the suite's own limit


def make_corridor() -> CorridorSuite:
    return CorridorSuite()


def make_corridor_untyped():  # type: ignore[no-untyped-def]
    return CorridorSuite()


def make_game_untyped(highest=9):  # type: ignore[no-untyped-def]
    return GuessNumber(highest)


def test_a_function_without_annotation_may_make_an_environment() -> None:
    assert check_env(make_game_untyped, {"highest": 1}, episodes=2, expert=str_of_one).name == "make_game_untyped"
    ((where, message),) = [error[1:] for error in check_env(make_game_untyped, {"highest": 0}).errors]
    assert where == "constructor" and "highest and guesses must be at least 1" in message


def str_right(observation: str, info: Any) -> str:
    return "go right"


def test_options_reach_reset() -> None:
    assert found("options", "error", options={"level": 9})[0][0] == "reset"
    assert not found("options", "error", options={"level": 8})


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="episodes and step_limit must be at least 1, got 0 and 50"):
        check_env(GuessNumber, episodes=0)
    with pytest.raises(ValueError, match="has no attribute 'Gess'"):
        check_env("lit_rft.envs.games.Gess")


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files_envs.py").write_text(
        "import gymnasium as gym\n\n\nclass Echo(gym.Env):\n"
        "    def reset(self, *, seed=None, options=None):\n        super().reset(seed=seed)\n"
        "        return (options or {}).get('text', 'Say something.'), {}\n\n"
        "    def step(self, action):\n        return action, len(action), True, False, {}\n"
    )
    monkeypatch.chdir(tmp_path)
    main(["check-env", "files_envs.Echo", "--options", json.dumps({"text": "Say hello."}), "--episodes", "3"])
    printed = capsys.readouterr().out
    assert "Say hello." in printed and "the first observation" in printed
    assert "Echo: 0 errors, 0 warnings" in printed


def test_the_command_fails_where_there_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError):  # exit code 1
        main(["check-env", "bad_envs.Plain", "--args", '{"fault": "nan"}'])
    assert "error: reward: expected a finite number, got nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_envs.Guess"], r"env no_envs\.Guess: No module named 'no_envs'"),
        (["./bad_envs.py:Plain"], r"env must be an import path such as my_envs\.Guess, got '\./bad_envs\.py:Plain'"),
        (["bad_envs.Plain", "--expert", "bad_envs.py"], "--expert must be an import path .*, got 'bad_envs.py'"),
        (["bad_envs.Plain", "--options", "[1]"], r"expected a JSON object, got '\[1\]'"),
        (["bad_envs.Plain", "--split"], "expected one argument"),
        (["lit_rft.envs.scienceworld.short_tasks", "--split", "night"], "night"),
    ],
)
def test_wrong_commands(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["check-env", *arguments])
