"""ALFWorld's own games: files in its format, written by hand, with the grammars of both releases of the data."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_rft.envs import EnvPool, EpisodeEnv, EpisodeSpec
from lit_rft.envs.alfworld import OFFICIAL_GAMES, AlfworldSuite, eto, glider
from lit_rft.envs.alfworld.games import TASKS, Goal
from lit_rft.envs.alfworld.official import data_folder, official_games, read_household
from lit_rft.envs.alfworld.resources import load_resources
from lit_rft.envs.collect import collect_expert_episodes

# A bedroom: a desk with a closed drawer in it, both at one location, and a bed. The mug is in the drawer.
PROBLEM = """
(define (problem plan_trial_T20190101_000000_000001)
(:domain alfred)
(:objects
  agent1 - agent
  Mug_bar__minus_00_dot_50_bar__plus_00_dot_40_bar__plus_01_dot_00 - object
  DeskLamp_bar__plus_01_dot_00_bar__plus_00_dot_80_bar__plus_01_dot_00 - object
  Desk_bar__plus_01_dot_00_bar__plus_00_dot_00_bar__plus_01_dot_00 - receptacle
  Drawer_bar__plus_01_dot_00_bar__plus_00_dot_40_bar__plus_01_dot_00 - receptacle
  Bed_bar__minus_02_dot_00_bar__plus_00_dot_00_bar__plus_00_dot_00 - receptacle
  loc_bar_3_bar_2_bar_0_bar_30 loc_bar__minus_6_bar_1_bar_1_bar_30 loc_bar_0_bar_0_bar_0_bar_30 - location
  DeskType DrawerType BedType SinkBasinType MicrowaveType FridgeType - rtype
  MugType DeskLampType KnifeType ButterKnifeType - otype
)
(:init
  (= (total-cost) 0)
  (atLocation agent1 loc_bar_0_bar_0_bar_0_bar_30)
  (receptacleType Desk_bar__plus_01_dot_00_bar__plus_00_dot_00_bar__plus_01_dot_00 DeskType)
  (receptacleType Drawer_bar__plus_01_dot_00_bar__plus_00_dot_40_bar__plus_01_dot_00 DrawerType)
  (receptacleType Bed_bar__minus_02_dot_00_bar__plus_00_dot_00_bar__plus_00_dot_00 BedType)
  (receptacleAtLocation Desk_bar__plus_01_dot_00_bar__plus_00_dot_00_bar__plus_01_dot_00 loc_bar_3_bar_2_bar_0_bar_30)
  (receptacleAtLocation Drawer_bar__plus_01_dot_00_bar__plus_00_dot_40_bar__plus_01_dot_00 loc_bar_3_bar_2_bar_0_bar_30)
  (receptacleAtLocation Bed_bar__minus_02_dot_00_bar__plus_00_dot_00_bar__plus_00_dot_00
    loc_bar__minus_6_bar_1_bar_1_bar_30)
  (openable Drawer_bar__plus_01_dot_00_bar__plus_00_dot_40_bar__plus_01_dot_00)
  (canContain DeskType MugType) (canContain BedType MugType) (canContain DrawerType MugType)
  (objectType Mug_bar__minus_00_dot_50_bar__plus_00_dot_40_bar__plus_01_dot_00 MugType)
  (objectType DeskLamp_bar__plus_01_dot_00_bar__plus_00_dot_80_bar__plus_01_dot_00 DeskLampType)
  (pickupable Mug_bar__minus_00_dot_50_bar__plus_00_dot_40_bar__plus_01_dot_00)
  (toggleable DeskLamp_bar__plus_01_dot_00_bar__plus_00_dot_80_bar__plus_01_dot_00)
  (inReceptacle Mug_bar__minus_00_dot_50_bar__plus_00_dot_40_bar__plus_01_dot_00
    Drawer_bar__plus_01_dot_00_bar__plus_00_dot_40_bar__plus_01_dot_00)
  (objectAtLocation Mug_bar__minus_00_dot_50_bar__plus_00_dot_40_bar__plus_01_dot_00 loc_bar_3_bar_2_bar_0_bar_30)
  (inReceptacle DeskLamp_bar__plus_01_dot_00_bar__plus_00_dot_80_bar__plus_01_dot_00
    Desk_bar__plus_01_dot_00_bar__plus_00_dot_00_bar__plus_01_dot_00)
)
(:goal (and (exists (?r - receptacle) (exists (?o - object)
  (and (inReceptacle ?o ?r) (objectType ?o MugType) (receptacleType ?r BedType))))))
)
"""
# What the release 2.1.1 of the data says otherwise than the later ones.
OLD_WORDS = [
    ("move {o} to {r}", "put {o} in/on {r}"),
    ("You move the {o.name} to the {r.name}.", "You put the {o.name} in/on the {r.name}."),
    ("You arrive at {r.name}.", "You arrive at {lend.name}."),
]
TRIAL = {
    "task_type": "pick_and_place_simple",
    "pddl_params": {"object_target": "Mug", "parent_target": "Bed", "toggle_target": "", "mrecep_target": ""},
}
NAME = "pick_and_place_simple-Mug-None-Bed-301/trial_T20190101_000000_00000{}"
BOTH = pytest.mark.parametrize("old", [False, True], ids=["move", "put"])


def game(old: bool = False) -> dict[str, Any]:
    resources = load_resources()
    grammar = resources.grammar.replace("UNKNOWN GOAL", "put a mug in bed")
    for new_words, old_words in OLD_WORDS if old else ():
        assert new_words in grammar
        grammar = grammar.replace(new_words, old_words)
    return {"pddl_domain": resources.domain, "grammar": grammar, "pddl_problem": PROBLEM, "solvable": True}


def write(folder: Path, name: str, content: dict[str, Any], trial: dict[str, Any] = TRIAL) -> None:
    path = folder / name
    path.mkdir(parents=True)
    (path / "game.tw-pddl").write_text(json.dumps(content))
    (path / "traj_data.json").write_text(json.dumps(trial))


@pytest.fixture
def data(tmp_path: Path, extra: None) -> Path:
    """Two games in the split valid_seen: one of each release. And some that do not count."""
    seen = tmp_path / "json_2.1.1" / "valid_seen"
    write(seen, NAME.format(2), game(old=True))
    write(seen, NAME.format(1), game())
    write(seen, NAME.format(3), {**game(), "solvable": False})
    write(seen, NAME.format(4), {key: value for key, value in game().items() if key != "solvable"})
    write(seen, "pick_and_place_with_movable_recep-Mug-Bowl-Bed-301/trial_1", game())
    write(seen, "pick_and_place_simple-AppleSliced-None-Bed-301/trial_1", game())
    write(seen, "pick_and_place_simple-Mug-None-Desk-301/trial_1", game(), {**TRIAL, "task_type": "another"})
    (tmp_path / "json_2.1.1" / "valid_unseen").mkdir()
    return tmp_path


def suite_of(data: Path, **settings: Any) -> AlfworldSuite:
    return AlfworldSuite(data=str(data), check_counts=False, **settings)


def specs_of(data: Path) -> list[EpisodeSpec]:
    return suite_of(data).episodes("valid_seen")


def play(data: Path, old: bool, actions: list[str]) -> list[Any]:
    env = EpisodeEnv(suite_of(data).make_env())
    return [env.reset(specs_of(data)[int(old)]), *(env.step(action) for action in actions)]


@BOTH
def test_a_game_of_either_release_is_played_to_its_goal(data: Path, old: bool) -> None:
    put = "put mug 1 in/on bed 1" if old else "move mug 1 to bed 1"
    actions = ["go to desk 1", "open drawer 1", "take mug 1 from drawer 1", "go to bed 1", put]
    (observation, info), *steps = play(data, old, actions)
    assert observation.startswith(
        "You are in the middle of a room. Looking quickly around you, you see a bed 1, a desk 1"
    )
    assert info["task_description"] == "put a mug in bed."
    assert info["env"] == "alfworld" and "go to bed 1" in info["admissible"]
    # each release names the place of arrival in its own way; neither is shown
    assert [step[0] for step in steps] == [
        "On the desk 1, you see a desklamp 1.",
        "You open the drawer 1. The drawer 1 is open. In it, you see a mug 1.",
        "You pick up the mug 1 from the drawer 1.",
        "On the bed 1, you see nothing.",
        "You put the mug 1 in/on the bed 1." if old else "You move the mug 1 to the bed 1.",
    ]
    assert put in steps[3][-1]["admissible"]
    assert [step[1] for step in steps] == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert steps[-1][2] and steps[-1][-1]["success"] and steps[-1][-1]["reason"] == "goal"
    assert [condition.text for step in steps for condition in step[-1]["achieved"]] == ["take mug", "put mug in bed"]


@BOTH
@pytest.mark.parametrize("put", ["put mug 1 in/on bed 1", "move mug 1 to bed 1", "put mug 1 on bed 1"])
def test_either_form_of_the_command_is_understood(data: Path, old: bool, put: str) -> None:
    *_, last = play(data, old, ["go to desk 1", "open drawer 1", "take mug 1 from drawer 1", "go to bed 1", put])
    assert last[2] and last[-1]["valid"]


def test_going_where_one_is_is_answered_with_nothing(data: Path) -> None:
    """Desk and drawer share a location (alfworld issue 97)."""
    _, first, second = play(data, False, ["go to desk 1", "go to drawer 1"])
    assert first[-1]["valid"] and second[0] == "Nothing happens." and not second[-1]["valid"]


@BOTH
def test_the_step_limit_is_no_success(data: Path, old: bool) -> None:
    (spec, other) = specs_of(data)
    env = EpisodeEnv(suite_of(data).make_env())
    env.reset(dataclasses.replace(other if old else spec, step_limit=2))
    env.step("go to desk 1")
    *_, terminated, truncated, info = env.step("look")
    assert (terminated, truncated, info["success"], info["score"]) == (False, True, False, 0.0)


@BOTH
def test_the_expert_solves_it(data: Path, old: bool, tmp_path: Path) -> None:
    suite = suite_of(data)
    spec = suite.episodes("valid_seen")[int(old)]
    (episode,) = collect_expert_episodes(suite, [spec], tmp_path / "expert.jsonl", num_workers=1, progress=False)
    assert episode.outcome.success and all(step.valid for step in episode.steps if not step.action.startswith("go to"))
    assert (episode.env, episode.meta["game"], episode.source["kind"]) == ("alfworld", spec.options["game"], "explorer")
    assert [goal.goal for goal in episode.subgoals] == ["take mug", "put mug in bed"]
    put = episode.steps[-1].action  # in the game's own words, as listed: an agent may choose among the list only
    assert put == ("put mug 1 in/on bed 1" if old else "move mug 1 to bed 1")
    assert put in episode.extra["admissible"][-2]
    assert "synthetic" not in json.dumps(episode.to_dict())


def test_games_are_counted_as_alfworld_counts_them(data: Path) -> None:
    games = official_games(data, "valid_seen")
    expected = [f"json_2.1.1/valid_seen/{NAME.format(number)}/game.tw-pddl" for number in (1, 2)]
    assert games == {task: expected if task == TASKS[0] else [] for task in TASKS}
    specs = specs_of(data)
    assert [spec.id for spec in specs] == [f"alfworld/valid_seen/{NAME.format(number)}" for number in (1, 2)]
    assert {(spec.task, spec.split, spec.step_limit) for spec in specs} == {(TASKS[0], "valid_seen", 50)}
    with pytest.raises(
        ValueError, match=r"expected 140 games in the split valid_seen of .*, got 2: download them again"
    ):
        AlfworldSuite(data=str(data)).episodes("valid_seen")
    with pytest.raises(ValueError, match="'alfworld' has the splits train, valid_seen, valid_unseen, got 'test'"):
        suite_of(data).episodes("test")


def test_the_settings_of_papers() -> None:
    assert OFFICIAL_GAMES == {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
    assert (glider().step_limit, eto().step_limit) == (50, 40)
    assert glider().splits == eto().splits == {"train": "train", "seen": "valid_seen", "unseen": "valid_unseen"}
    assert glider().check_counts and eto().check_counts
    assert pickle.loads(pickle.dumps(glider().make_env)).__self__ == glider()


def test_where_the_data_is(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    assert data_folder() == data
    assert len(dataclasses.replace(glider(), check_counts=False).episodes("seen")) == 2
    (empty := tmp_path / "empty").mkdir()
    monkeypatch.setenv("ALFWORLD_DATA", str(empty))  # importing alfworld sets it, and makes the folder
    with pytest.raises(ValueError, match=r"no ALFWorld games in .*empty: expected a folder json_2.1.1 there"):
        glider().episodes("seen")


def test_bad_options_and_files(data: Path) -> None:
    env = suite_of(data).make_env()
    for options in ({}, {"game": 1}, {"game": "x", "seed": 1}):
        with pytest.raises(ValueError, match=r"reset needs options={'game': path}"):
            env.reset(options=options)
    for path in ("../x", "/etc/passwd"):
        with pytest.raises(ValueError, match="game must be a path within the folder"):
            env.reset(options={"game": path})
    with pytest.raises(ValueError, match="cannot be read"):
        env.reset(options={"game": "json_2.1.1/none"})
    for text, message in (("{", "not JSON"), ("[]", "expected an object, got list")):
        (data / "broken").write_text(text)
        with pytest.raises(ValueError, match=message):
            env.reset(options={"game": "broken"})
    with pytest.raises(ValueError, match=r"traj_data.json: expected task_type"):
        read_household(game(), {"task_type": "pick_and_place_simple"})
    with pytest.raises(ValueError, match=r"expected \(:init \.\.\.\) and then \(:goal"):
        read_household({**game(), "pddl_problem": "(define)"}, TRIAL)


def test_a_game_as_data(extra: None) -> None:
    household = read_household(game(), TRIAL)
    assert household.goal == Goal("pick_and_place_simple", "mug", "bed")
    assert household.description == "put a mug in bed"
    bed, desk, drawer = household.receptacles
    assert (bed.name, desk.name, drawer.name, drawer.openable) == ("bed 1", "desk 1", "drawer 1", True)
    assert desk.location == drawer.location != bed.location and bed.accepts == {"mug"}
    lamp, mug = household.things
    assert (mug.name, mug.place, mug.flags) == ("mug 1", "drawer 1", {"pickupable"})
    assert (lamp.name, lamp.place, lamp.flags) == ("desklamp 1", "desk 1", {"toggleable"})


@pytest.mark.parametrize("template", ["put {o}", "put {o} in {r} {r}", "put {o.name} in {r}", "put {o} in {r", "{}"])
def test_an_unusual_form_of_the_command_is_not_taken(template: str, extra: None) -> None:
    content = game()
    content["grammar"] = content["grammar"].replace("move {o} to {r}", template)
    assert read_household(content, TRIAL).put == "move {o} to {r}"


def test_a_bad_game_ends_the_run_and_not_the_worker_pool(data: Path) -> None:
    """A file that holds a program is refused by the worker, as bad options are."""
    name = NAME.format(5)
    bad = {**game(), "grammar": game()["grammar"].replace("You close the {r.name}", "You close {exit()}")}
    write(data / "json_2.1.1" / "valid_seen", name, bad)
    with EnvPool(suite_of(data).make_env, 1) as pool:
        pool.submit(EpisodeSpec("bad", options={"game": f"json_2.1.1/valid_seen/{name}/game.tw-pddl"}))
        with pytest.raises(ValueError, match="grammar: expected names of entities"):
            while pool.outstanding:
                pool.wait()
    shutil.rmtree(data / "json_2.1.1" / "valid_seen" / name)
