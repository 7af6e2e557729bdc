"""Offline RL on households with a pretrained model: its commands, training files and comparison of games."""

import importlib
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
def households() -> Any:
    return load("offline_households")


def test_every_command_is_valid(households: Any, capsys: pytest.CaptureFixture[str]) -> None:
    households.main(["--seeds", "4", "5", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line)[3:] for line in lines if "lit_rft.cli" in line]
    methods, policies = len(households.METHODS), len(households.METHODS) + 1
    assert len(lines) == 2 * (2 + methods + 2 * policies) == len(set(lines))  # each seed: demo, medium, fits, plays
    seeds = [command[command.index("--seed_everything") + 1] for command in commands]
    main = 1 + 2 + 3  # games to learn from, two fits, three times held-out games
    assert seeds[: 2 * main] == ["4"] * main + ["5"] * main  # of all seeds before other methods
    recipes = {"".join(value for value in command if value.endswith("yaml") or "class_path" in value): command
               for command in commands}  # fmt: skip
    starts = set()
    for _, *arguments in recipes.values():
        if "--ckpt_path" in arguments:
            del arguments[-2:]
        cli = build(resolve_configs(arguments), run=False)
        assert cli.model.agent.levels == ("flat",) and cli.datamodule.suite.step_limit == 20
        assert cli.model.acting.sampling.max_new_tokens == 16 and len(cli.datamodule.tasks) == 4
        starts.add(Path(cli.model.policy_settings.start_from).parts[-3])
    assert len(recipes) == 3 and starts == {"seed-5", "by_q"}  # the demo's policy, and the one of the last games


def test_cut_games_are_failures_to_learn_from(households: Any, tmp_path: Path) -> None:
    place = households.Place(4, tmp_path, tmp_path / "demo", "test")
    episodes = []
    for name, success in (("solved", True), ("cut", False)):
        episode = make_episode(num_steps=3, subgoals=False)
        episode.id, outcome = name, episode.outcome
        outcome.success, outcome.terminated, outcome.truncated = success, success, not success
        episodes.append(episode)
    write_episodes(tmp_path / "medium" / "episodes" / "predicted.jsonl", episodes)
    place.select()
    by_id = {episode.id: episode.outcome for episode in read_episodes(tmp_path / "medium" / "all.jsonl")}
    assert list(by_id) == ["solved", "cut"]
    assert all(outcome.terminated and not outcome.truncated for outcome in by_id.values())
    assert [episode.id for episode in read_episodes(tmp_path / "medium" / "solved.jsonl")] == ["solved"]


def test_failed_games_are_described() -> None:
    """Repeated actions of the failed games alone, and those that the environment did not accept."""
    report = importlib.import_module("offline_households_report")
    episodes = [make_episode(num_steps=4, subgoals=False) for _ in range(3)]
    for episode, success in zip(episodes, (True, False, False), strict=True):
        episode.outcome.success = success
        for step, action in zip(episode.steps, "abab", strict=True):
            step.action = action
    episodes[2].steps[1].observation = "Nothing happens."
    assert report.failures(episodes) == {"games": 2, "invalid": 0.5, "repeated": 2}
    assert report.failures(episodes[:1]) == {"games": 0}
    rows = list(report.failure_rows({"seeds": {"0": {"failures": {"sft-0": report.failures(episodes)}}, "4": {}}}))
    assert rows[1:] == [["seed 0, sft-0", "2", "2", "0.5"]]


def test_policies_are_compared_in_the_same_games(households: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report = importlib.import_module("offline_households_report")
    assert report.sign_test(8, 1) == pytest.approx(20 / 512) and report.sign_test(0, 0) == report.sign_test(3, 3) == 1.0
    played = {"returns-0": {"b": [True, 5], "a": [True, 9]}, "sft-0": {"a": [False, 20], "b": [True, 6]}}
    seeds = {str(seed): {"split": "test", "games": played, "diagnostics": {}} for seed in (4, 5)}
    seeds["0"] = {"split": "dev", "games": played, "diagnostics": {"returns": {"effective_share": 0.5}}}
    titles = {"sft": {"title": "SFT"}, "returns": {"title": "+ RL"}}
    results = {"seeds": seeds, "settings": {"methods": titles, "medium_temperature": 1.0}}
    _, row = report.difference_rows(results)  # without the validation seed
    assert row[:3] == ["greedy: RL - SFT", "50.0 ± 0.0", "+50.0 / +50.0"] and row[4:] == ["2 / 0", "0.500"]
    report.report(results)
    assert "| + RL, greedy | 100.0 (7.0) |" in capsys.readouterr().out
