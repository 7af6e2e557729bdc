"""The environment and the suite of generated games, as the rest of the library sees them."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from lit_rft.envs import EpisodeEnv
from lit_rft.envs.alfworld import AlfworldSuite, SyntheticSuite, small_households
from lit_rft.envs.alfworld.games import TASKS
from lit_rft.envs.alfworld.resources import Resources
from lit_rft.envs.base import describe, expert_of
from lit_rft.envs.collect import collect_expert_episodes
from lit_rft.episodes import Episode, read_episodes
from lit_rft.episodes.subgoals import annotate_events


def play(suite: SyntheticSuite, number: int, task: str = TASKS[2], **changes: Any) -> list[tuple[Any, ...]]:
    """Play the expert's actions of one training game; the answers of reset and of each step."""
    (spec,) = [s for s in suite.episodes("train") if s.options == {"task": task, "split": "train", "seed": number}]
    env = EpisodeEnv(suite.make_env())
    answers: list[tuple[Any, ...]] = [env.reset(dataclasses.replace(spec, **changes))]
    for action in expert_of(suite).actions(spec, answers[0][1]):
        answers.append((action, *env.step(action)))
        if answers[-1][3] or answers[-1][4]:
            break
    return answers


def test_the_expert_solves_an_episode(rooms: Resources) -> None:
    (observation, info), *steps = play(SyntheticSuite(games={"train": 3}), 1)
    assert observation.startswith("You are in the middle of a room.")
    assert (info["env"], info["env_version"]) == ("alfworld-synthetic", "test")
    assert info["task_description"].startswith("put a clean ") and "go to sinkbasin 1" in info["admissible"]
    _, _, reward, terminated, truncated, info = steps[-1]
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (info["score"], info["success"], info["valid"], info["reason"]) == (1.0, True, True, "goal")
    assert [step[2] for step in steps[:-1]] == [0.0] * (len(steps) - 1)
    assert [c.text.split()[0] for step in steps for c in step[-1]["achieved"]] == ["take", "clean", "put"]
    assert not any("You arrive" in step[1] for step in steps)


def test_achieved_names_types_and_keys_instances(rooms: Resources) -> None:
    answers = play(SyntheticSuite(games={"train": 3}), 1, task="pick_two_obj_and_place")
    achieved = [condition for step in answers[1:] for condition in step[-1]["achieved"]]
    assert len({condition.key for condition in achieved}) == 4
    assert len({condition.text for condition in achieved}) == 2
    assert all(word.isalpha() for condition in achieved for word in condition.text.split())


def test_the_step_limit_truncates(rooms: Resources) -> None:
    *_, last = play(SyntheticSuite(games={"train": 1}), 0, step_limit=2)
    assert last[3:5] == (False, True) and last[-1]["reason"] == "step_limit" and not last[-1]["success"]


def test_both_forms_of_putting_down_and_nonsense(rooms: Resources) -> None:
    suite = SyntheticSuite(games={"train": 3})
    (spec,) = [s for s in suite.episodes("train") if s.options["seed"] == 1 and s.options["task"] == TASKS[2]]
    *_, last = expert_of(suite).actions(spec, {})
    thing, _, place = last.removeprefix("move ").partition(" to ")
    for form in ("move {} to {}", " put {} in/on {}\n", "put {} on {}", "place {} in {}"):
        env = EpisodeEnv(suite.make_env())
        env.reset(spec)
        for action in list(expert_of(suite).actions(spec, {}))[:-1]:
            env.step(action)
        for nonsense in ("", "take", "put it down", "fly to the moon", "go to \ud800", "move x to y to z"):
            observation, reward, terminated, _, info = env.step(nonsense)
            assert (observation, reward, terminated, info["valid"]) == ("Nothing happens.", 0.0, False, False)
        assert env.step(form.format(thing, place))[2], form


def test_the_environment_follows_gymnasium(rooms: Resources, recwarn: pytest.WarningsRecorder) -> None:
    env = SyntheticSuite().make_env()
    with pytest.raises(RuntimeError, match="no episode is being played"):
        env.step("look")
    with pytest.raises(ValueError, match=r"reset needs options=.*got the options \['x'\]"):
        env.reset(options={"x": 1})
    options = {"task": TASKS[0], "split": "dev", "seed": 0}
    reset = env.reset
    env.reset = lambda *, seed=None, options=None, default=options: reset(seed=seed, options=options or default)  # type: ignore[assignment, misc]
    check_env(env, skip_render_check=True, skip_close_check=True)


def test_everything_is_marked_synthetic(rooms: Resources) -> None:
    suite = SyntheticSuite()
    specs = suite.episodes("dev", limit=2)
    assert suite.name == "alfworld-synthetic"
    assert len(specs) == 12 == len({spec.id for spec in specs})
    for spec in specs:
        assert spec.task.startswith("synthetic-") and spec.id.startswith("alfworld-synthetic/")
        assert spec.meta["synthetic"] is True and spec.step_limit == 30
    assert {spec.options["task"] for spec in specs} == set(TASKS)


def test_episodes_are_chosen_like_those_of_other_suites(rooms: Resources) -> None:
    suite = SyntheticSuite(games={"train": 6, "dev": 2})
    assert len(suite.episodes("train")) == 36
    halves = [{spec.id for spec in suite.episodes("train", half=half)} for half in ("first", "second")]  # type: ignore[arg-type]
    assert len(halves[0]) == len(halves[1]) == 18 and not halves[0] & halves[1]
    task = "synthetic-" + TASKS[1]
    assert {spec.task for spec in suite.episodes("train", tasks=[task], limit=2)} == {task}
    assert suite.episodes("train", limit=2) == suite.episodes("train", limit=2)
    assert suite.episodes("train", limit=2) != suite.episodes("train", limit=2, seed=1)
    with pytest.raises(ValueError, match="'alfworld-synthetic' has the splits train, dev, got 'test'"):
        suite.episodes("test")
    with pytest.raises(ValueError, match=f"unknown task '{TASKS[0]}'; 'alfworld-synthetic' has synthetic-"):
        suite.episodes("train", tasks=[TASKS[0]])
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        suite.episodes("train", limit=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_limit": 0}, "step_limit must be at least 1, got 0"),
        ({"games": {"valid_seen": 3}}, "games takes train, dev, test"),
        ({"games": {"dev": 0}}, "got dev: 0"),
        ({"mistakes": 1.0}, r"mistakes must be in \[0, 1\), got 1.0"),
        ({"max_receptacles": 0}, "max_per_type must be at least 1"),
        ({"closed": 2.0}, "closed must be in 0..1 or null, got 2.0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticSuite(**settings)


def test_settings_change_ids_files_and_workers(rooms: Resources) -> None:
    suites = [SyntheticSuite(), SyntheticSuite(max_receptacles=2), SyntheticSuite(closed=0.7)]
    assert len({suite.episodes("dev")[0].id for suite in suites}) == 3
    suites += [SyntheticSuite(mistakes=0.2), SyntheticSuite(textworld=True), SyntheticSuite(omniscient=True)]
    assert len({describe(suite) for suite in suites}) == 6
    assert len({expert_of(suite).kind for suite in suites}) == 3
    assert pickle.loads(pickle.dumps(suites[1].make_env)).__self__ == suites[1]
    assert small_households() == suites[1] and small_households(mistakes=0.3).mistakes == 0.3


def collect(suite: SyntheticSuite, path: Path) -> list[Episode]:
    specs = suite.episodes("train", limit=2)
    return collect_expert_episodes(suite, specs, path, num_workers=1, progress=False)


def test_episodes_are_collected_with_subgoals(extra: None, tmp_path: Path) -> None:
    """By the library's own collector, in a worker process: expert episodes, and worse ones."""
    suite = SyntheticSuite(max_receptacles=2, step_limit=50)
    episodes = collect(suite, tmp_path / "expert.jsonl")
    assert read_episodes(tmp_path / "expert.jsonl") == episodes
    assert len(episodes) == 12 and all(episode.outcome.success for episode in episodes)
    assert {episode.source["kind"] for episode in episodes} == {"explorer"}
    for episode in episodes:
        assert episode.env == "alfworld-synthetic" and episode.meta["synthetic"] is True
        segments = [(goal.start, goal.end, goal.goal) for goal in episode.subgoals]
        assert segments == annotate_events(episode) and 1 <= len(segments) <= 4
    worse = collect(dataclasses.replace(suite, mistakes=0.3), tmp_path / "mistakes.jsonl")
    assert {episode.source["kind"] for episode in worse} == {"explorer-mistakes-0.3-0"}
    assert not {episode.id for episode in worse} & {episode.id for episode in episodes}
    valid = [step.valid for episode in worse for step in episode.steps]
    assert 0.7 < sum(valid) / len(valid) < 1.0


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_rft.envs.alfworld import resources

    monkeypatch.setattr(resources.importlib.machinery.PathFinder, "find_spec", lambda name: None)
    resources.load_resources.cache_clear()
    for suite in (SyntheticSuite(), AlfworldSuite()):
        with pytest.raises(ImportError, match=r"pip install 'lit-rft\[alfworld\]'"):
            suite.make_env()


def test_a_missing_engine_is_named(rooms: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textworld.envs.pddl", None)
    with pytest.raises(ImportError, match=r"played with TextWorld: pip install 'lit-rft\[alfworld\]'"):
        SyntheticSuite(textworld=True).make_env()
    SyntheticSuite().make_env()
