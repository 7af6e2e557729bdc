"""Offline RL with a pretrained model: commands on households and ScienceWorld, training files, comparison of games."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import load

from lit_rft.cli import resolve_configs
from lit_rft.command_line import build
from lit_rft.episodes import read_episodes, write_episodes
from lit_rft.testing import make_episode


@pytest.fixture(scope="module")
def report() -> Any:
    return load("offline_pretrained_report")


@pytest.mark.parametrize(
    ("name", "tokens", "starts"),
    [
        ("offline_households", 16, {"seed-5", "expert"}),  # the demo's policy, and the one of the last games
        ("offline_scienceworld", 24, {"sft", "expert"}),
    ],
)
def test_every_command_is_valid(name: str, tokens: int, starts: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    benchmark, shared = load(name), load("offline_pretrained")
    benchmark.run(["--seeds", "4", "5", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line)[3:] for line in lines]
    methods, policies = len(shared.METHODS), len(shared.METHODS) + 1
    assert len(lines) == 2 * (2 + methods + 3 * policies) == len(set(lines))  # each seed: SFT, medium, fits, plays
    seeds = ["4" if "seed-4" in line else "5" for line in lines]
    main = 2 + 2 + 3  # SFT, games to learn from, two fits, three times held-out games
    assert seeds[: 2 * main] == ["4"] * main + ["5"] * main  # of all seeds before other methods
    recipes = {"".join(value for value in command if value.endswith("yaml") or "class_path" in value): command
               for command in commands if command[0] in {"fit", "predict"}}  # fmt: skip
    used = set()
    for _, *arguments in recipes.values():
        if "--ckpt_path" in arguments:
            del arguments[-2:]
        cli = build(resolve_configs(arguments), run=False)
        assert cli.model.agent.levels == ("flat",) and cli.datamodule.suite.step_limit == 20
        assert cli.model.acting.sampling.max_new_tokens == tokens
        used.add(Path(cli.model.policy_settings.start_from).parts[-3])
    assert len(recipes) == 3 and used == starts


def test_learning_and_held_out_episodes_are_different_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """On ScienceWorld SFT has one half of the training variations, the games to learn from are of the other."""
    load("offline_scienceworld").run(["--validation", "--dry-run"])
    sft, medium, played, *_ = capsys.readouterr().out.splitlines()
    assert "train_half first" in sft
    assert "predict_split train" in medium and "predict_half second" in medium
    assert "predict_split dev" in played and "half" not in played


def test_the_suite_of_scienceworld_has_the_splits_of_the_held_out_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, split in ((["--validation"], "dev"), ([], "test")):
        load("offline_scienceworld").run([*arguments, "--dry-run"])
        played = next(line for line in capsys.readouterr().out.splitlines() if "played" in line)
        data = build(resolve_configs(shlex.split(played)[4:]), run=False).datamodule
        assert data.suite.official_split(data.predict_split) == split


@pytest.mark.parametrize(("name", "half"), [("offline_households", None), ("offline_scienceworld", "first")])
def test_expert_episodes_are_those_of_sft(name: str, half: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    load(name).run(["--validation", "--dry-run"])
    commands = [shlex.split(line)[3:] for line in capsys.readouterr().out.splitlines()]
    fits = [c for c in commands if c[0] == "fit" and "expert" in c[c.index("--trainer.default_root_dir") + 1]]
    alone, mixed = (build(resolve_configs(arguments[:-2]), run=False).datamodule for _, *arguments in fits)
    for data in (mixed, alone):
        assert data.train_files is None and data.train_half == half
        assert data.train_episodes_per_task == (32 if half else 60)  # as in the SFT recipes
    assert mixed.medium_per_expert == 2 and Path(mixed.medium_files[0]).name == "all.jsonl"
    assert alone.medium_files is None


def test_cut_games_are_failures_to_learn_from(tmp_path: Path) -> None:
    shared = load("offline_pretrained")
    place = shared.Place(load("offline_households").make_subject(tmp_path), 4, tmp_path / "runs", "test")
    episodes = []
    for name, success in (("solved", True), ("cut", False)):
        episode = make_episode(num_steps=3, subgoals=False)
        episode.id, outcome = name, episode.outcome
        outcome.success, outcome.terminated, outcome.truncated = success, success, not success
        episodes.append(episode)
    write_episodes(place.home / "medium" / "episodes" / "predicted.jsonl", episodes)
    place.select()
    by_id = {episode.id: episode.outcome for episode in read_episodes(place.home / "medium" / "all.jsonl")}
    assert list(by_id) == ["solved", "cut"]
    assert all(outcome.terminated and not outcome.truncated for outcome in by_id.values())
    assert [episode.id for episode in read_episodes(place.home / "medium" / "solved.jsonl")] == ["solved"]


def test_best_episodes_of_scienceworld_are_a_quarter_by_score() -> None:
    episodes = [make_episode(num_steps=number, subgoals=False) for number in (1, 2, 3, 4, 5, 6, 7, 8)]
    scores = (0.5, 0.75, 0.75, 0.75, 0.0, 0.0, 0.0, 0.0)
    for episode, score in zip(episodes, scores, strict=True):
        episode.outcome.score = score
    assert load("offline_scienceworld").best_quarter(episodes[::-1]) == episodes[1:3]


def test_failed_games_are_described(report: Any) -> None:
    """Repeated actions of the failed games alone, those that the environment did not accept, and who ended them."""
    episodes = [make_episode(num_steps=4, subgoals=False) for _ in range(3)]
    for episode, success in zip(episodes, (True, False, False), strict=True):
        episode.outcome.success = episode.outcome.terminated = success
        for step, action in zip(episode.steps, "abab", strict=True):
            step.action = action
    for step in episodes[2].steps[1:3]:
        step.valid = False
    episodes[2].outcome.terminated = True
    assert report.failures(episodes) == {"games": 2, "ended": 0.5, "invalid": 1, "repeated": 2}
    assert report.failures(episodes[:1]) == {"games": 0}
    rows = list(report.failure_rows({"seeds": {"0": {"failures": {"sft-0": report.failures(episodes)}}, "4": {}}}))
    assert rows[1:] == [["seed 0, sft-0", "2", "0.5", "2", "1"]]


def test_policies_are_compared_in_the_same_games(report: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.sign_test(8, 1) == pytest.approx(20 / 512) and report.sign_test(0, 0) == report.sign_test(3, 3) == 1.0
    played = {
        "returns-0": {"g/test/t/b/0": [True, 5], "g/test/t/a/0": [True, 9]},
        "sft-0": {"g/test/t/a/0": [False, 20], "g/test/t/b/0": [True, 6]},
    }
    seeds = {str(seed): {"split": "test", "games": played, "diagnostics": {}} for seed in (4, 5)}
    seeds["0"] = {"split": "dev", "games": played, "diagnostics": {"returns": {"effective_share": 0.5}}}
    titles = {"sft": {"title": "SFT"}, "returns": {"title": "+ RL"}}
    results = {"seeds": seeds, "settings": {"methods": titles, "medium_temperature": 1.0}}
    _, row = report.difference_rows(results)  # without the validation seed
    assert row[:3] == ["greedy: RL - SFT", "50.0 ± 0.0", "+50.0 / +50.0"] and row[4:] == ["2 / 0", "0.500"]
    report.report(results)
    assert "| + RL, greedy | 100.0 (7.0) |" in capsys.readouterr().out


def test_tasks_are_told_apart(report: Any) -> None:
    """By the measure of the results; a task that a policy has not played has an empty cell."""
    both = {"g/test/find/1/0": [True, 5, 1.0], "g/test/find/2/0": [False, 5, 0.5], "g/test/boil/1/0": [False, 9, 0.25]}
    one = {"g/test/find/1/0": [True, 5, 1.0]}
    seeds = {"4": {"split": "test", "games": {"sft-0": both, "returns-0": one, "medium": both}}}
    results = {"seeds": seeds, "settings": {"methods": {}, "measure": "score"}}
    rows = [["score by task", "boil", "find"], ["seed 4, returns-0", "", "100"], ["seed 4, sft-0", "25", "75"]]
    assert list(report.task_rows(results)) == rows
    results["settings"]["measure"] = "success"
    assert list(report.task_rows(results))[2] == ["seed 4, sft-0", "0", "50"]


def test_policies_are_compared_by_score(report: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A game that both fail counts too, if one of them gets further."""
    played = {
        "returns-0": {"g/test/t/a/0": [False, 20, 0.5], "g/test/t/b/0": [True, 6, 1.0]},
        "sft-0": {"g/test/t/a/0": [False, 20, 0.25], "g/test/t/b/0": [True, 5, 1.0]},
    }
    titles = {"sft": {"title": "SFT"}, "returns": {"title": "+ RL"}}
    settings = {"methods": titles, "medium_temperature": 1.0, "measure": "score"}
    results = {"seeds": {"4": {"split": "test", "games": played, "diagnostics": {}}}, "settings": settings}
    _, row = report.difference_rows(results)
    assert row == ["greedy: RL - SFT", "12.5", "+12.5", "+0.0 to +25.0", "1 / 0", "1.000"]
    report.report(results)
    assert "| + RL, greedy | 75.0, 50.0 (13.0) |" in capsys.readouterr().out
