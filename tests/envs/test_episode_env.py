"""The contract of environments: what is filled in, what is kept, and what is refused."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from lit_rft.envs import ContractError, EpisodeEnv, EpisodeSpec
from lit_rft.episodes import Achieved


class Scripted(gym.Env[str, str]):
    """Answers what it is given."""

    def __init__(self, start: Any = ("start", {}), *steps: Any) -> None:
        self.start, self.steps, self.asked = start, list(steps), []  # type: ignore[var-annotated]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.asked.append((seed, options))
        return self.start

    def step(self, action: str) -> Any:
        return self.steps.pop(0)


def play(spec: EpisodeSpec, *steps: Any, start: Any = ("start", {})) -> tuple[dict[str, Any], list[Any]]:
    env = EpisodeEnv(Scripted(start, *steps))
    _, info = env.reset(spec)
    return info, [env.step("act") for _ in steps]


def test_an_environment_without_any_info_gets_every_default() -> None:
    env = Scripted(("a dark room", {}), ("b", -0.5, False, False, {}), ("c", 2.0, True, False, {}))
    played = EpisodeEnv(env)
    observation, info = played.reset(EpisodeSpec("e", seed=7, options={"level": 2}))
    assert env.asked == [(7, {"level": 2})]
    assert observation == "a dark room"
    expected = {"env": "Scripted", "env_version": "", "task_description": "a dark room", "score": 0.0, "achieved": []}
    assert info == {**expected, "metrics": {}}
    rest: dict[str, Any] = {"valid": True, "achieved": [], "metrics": {}}
    first = {**rest, "score": -0.5, "success": False, "reason": None}
    assert played.step("x") == ("b", -0.5, False, False, first)
    last = {**rest, "score": 1.5, "success": True, "reason": "goal"}
    assert played.step("y") == ("c", 2.0, True, False, last)
    played.reset(EpisodeSpec("f"))
    assert env.asked[1] == (None, None)


def test_what_an_environment_reports_is_kept() -> None:
    told = {"env": "mine", "env_version": "3", "task_description": "win", "score": 0.25, "gold_path": ["a"]}
    told |= {"achieved": ["in hall"], "admissible": ["go"]}
    step = {"score": np.float32(40.0), "success": False, "valid": False, "reason": "lost", "metrics": {"moves": 3.0}}
    step |= {"achieved": [{"key": "k", "text": "open it"}, Achieved("r", "go")], "admissible": ["stay"]}
    info, [(_, reward, terminated, truncated, after)] = play(
        EpisodeSpec("e"), ("b", np.float64(-3), np.bool_(True), 0, step), start=("start", told)
    )
    assert info == {**told, "achieved": [Achieved("in hall", "in hall")], "metrics": {}}
    assert after == {**step, "achieved": [Achieved("k", "open it"), Achieved("r", "go")]}
    assert [type(x) for x in (reward, terminated, truncated, after["score"])] == [float, bool, bool, float]
    assert reward == -3.0


@pytest.mark.parametrize(
    ("reward", "terminated", "truncated", "limit", "expected"),
    [
        (1.0, True, False, 0, (True, False, True, "goal")),
        (0.0, True, False, 0, (True, False, False, "failed")),
        (-1.0, True, True, 1, (True, False, False, "failed")),  # never both
        (1.0, False, True, 0, (False, True, False, "truncated")),
        (1.0, False, False, 1, (False, True, False, "step_limit")),
        (1.0, False, False, 2, (False, False, False, None)),
    ],
)
def test_ends(reward: float, terminated: bool, truncated: bool, limit: int, expected: tuple[Any, ...]) -> None:
    _, [step] = play(EpisodeSpec("e", step_limit=limit), ("b", reward, terminated, truncated, {}))
    assert (step[2], step[3], step[4]["success"], step[4]["reason"]) == expected


def test_the_step_limit_restarts_in_each_episode() -> None:
    env = EpisodeEnv(Scripted(("start", {}), *[("b", 1.0, False, False, {})] * 3))
    env.reset(EpisodeSpec("e", step_limit=2))
    assert [env.step("x")[3] for _ in range(2)] == [False, True]
    env.reset(EpisodeSpec("f", step_limit=2))
    assert env.step("x")[3:] == (False, {**env_info(), "score": 1.0})


def env_info() -> dict[str, Any]:
    return {"success": False, "valid": True, "achieved": [], "reason": None, "metrics": {}}


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("start", r"Scripted\.reset must return \(observation, info\), got str"),
        ((np.zeros(2), {}), r"Scripted\.reset must return text as observation, got ndarray"),
        (("\ud800", {}), r"Scripted\.reset must return text that UTF-8 can encode: .*surrogates not allowed"),
        (
            ("start", {"metrics": {"a": None}}),
            r"Scripted\.reset must return a finite number as info\['metrics'\]\['a'\]",
        ),
        (
            ("start", {"task_description": None}),
            r"Scripted\.reset must return text as info\['task_description'\], got N",
        ),
        (
            ("start", {"task_description": "\ud800"}),
            r"Scripted\.reset must return text that UTF-8 can encode as info\['task_description'\]",
        ),
        (
            ("start", {"admissible": ["go \ud800"]}),
            r"Scripted\.reset must return a list of texts as info\['admissible'\]",
        ),
        (("start", {"env": 3}), r"Scripted\.reset must return text as info\['env'\], got 3"),
        (("start", {"env_version": 1.0}), r"Scripted\.reset must return text as info\['env_version'\], got 1.0"),
        (("start", {"admissible": {"a"}}), r"Scripted\.reset must return a list of texts as info\['admissible'\]"),
        (("start", None), r"Scripted\.reset must return a dictionary as info, got NoneType"),
    ],
)
def test_a_wrong_answer_to_reset_is_refused(start: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        play(EpisodeSpec("e"), start=start)


def test_the_last_value_of_each_metric_counts() -> None:
    steps = [("b", 0.0, False, False, {"metrics": metrics}) for metrics in ({"moves": np.int64(1)}, {}, {"won": True})]
    env = EpisodeEnv(Scripted(("start", {"metrics": {"rooms": 4, "moves": 0}}), *steps))
    _, info = env.reset(EpisodeSpec("e"))
    assert info["metrics"] == {"rooms": 4.0, "moves": 0.0}
    reported = [env.step("x")[4]["metrics"] for _ in steps]
    assert reported == [{"rooms": 4.0, "moves": 1.0}] * 2 + [{"rooms": 4.0, "moves": 1.0, "won": 1.0}]
    assert all(type(value) is float for value in reported[-1].values())
    assert env.reset(EpisodeSpec("f"))[1]["metrics"] == {"rooms": 4.0, "moves": 0.0}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (("b", 1.0, True, {}), r"\(observation, reward, terminated, truncated, info\), got 4 values"),
        ((None, 1.0, True, False, {}), "must return text as observation, got NoneType"),
        (("b", "1", True, False, {}), "must return a finite number as reward, got '1' \\(str\\)"),
        (("b", 10**400, True, False, {}), "must return a finite number as reward, got 1000"),
        (("b", float("nan"), True, False, {}), "must return a finite number as reward, got nan"),
        (("b", 1.0, True, False, []), "must return a dictionary as info, got list"),
        (("b", 1.0, True, False, {"score": None}), "must return a finite number as info\\['score'\\], got None"),
        (("b", 1.0, "no", False, {}), "must return True or False as terminated, got 'no'"),
        (("b", 1.0, True, np.zeros(2), {}), "must return True or False as truncated, got array"),
        (("b", 1.0, True, False, {"success": 1}), r"must return True or False as info\['success'\], got 1"),
        (("b", 1.0, True, False, {"valid": "yes"}), r"must return True or False as info\['valid'\], got 'yes'"),
        (("b", 1.0, True, False, {"reason": 3}), r"must return text or None as info\['reason'\], got 3"),
        (
            ("b", 1.0, True, False, {"achieved": "room"}),
            r"must return a list of texts or .* as info\['achieved'\], got",
        ),
        (("b", 1.0, True, False, {"achieved": [("k", "t")]}), r"info\['achieved'\], got \[\('k', 't'\)\] \(list\)"),
        (("b", 1.0, True, False, {"achieved": [{"key": "k"}]}), r"info\['achieved'\], got \[\{'key': 'k'\}\]"),
        (("b", 1.0, True, False, {"achieved": None}), r"info\['achieved'\], got None"),
        (("b", 1.0, True, False, {"admissible": "go"}), r"a list of texts as info\['admissible'\], got 'go' \(str\)"),
        (("b", 1.0, True, False, {"admissible": [1]}), r"a list of texts as info\['admissible'\], got \[1\]"),
        (("b", 1.0, True, False, {"metrics": 3.0}), r"numbers by name as info\['metrics'\], got 3.0"),
        (("b", 1.0, True, False, {"metrics": {1: 3.0}}), r"numbers by name as info\['metrics'\], got {1: 3.0}"),
        (
            ("b", 1.0, True, False, {"metrics": {"a": "3"}}),
            r"Scripted\.step .* as info\['metrics'\]\['a'\], got '3' \(str",
        ),
        (("b", 1.0, True, False, {"metrics": {"a": float("inf")}}), r"\['a'\], got inf"),
        (("b", 1.0, True, False, {"metrics": {"a": np.zeros(1)}}), r"\['a'\], got array\(\[0\.\]\) \(ndarray"),
    ],
)
def test_a_wrong_answer_to_step_is_refused(step: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        play(EpisodeSpec("e"), step)


def test_what_is_no_environment_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a gymnasium\.Env, got dict"):
        EpisodeEnv({})  # type: ignore[arg-type]
