"""Trials in an evaluation: first, last and best apart; a killed run goes on with the next trial."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lit_rft.agents import ReActAgent, ReflexionAgent
from lit_rft.callbacks import EpisodeFiles
from lit_rft.datamodules import TrajectoryDataModule
from lit_rft.envs import EpisodeSpec
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.episodes import Episode, Outcome, read_episodes
from lit_rft.generation import SamplingSettings
from lit_rft.stages import ActingSettings
from lit_rft.stages.core.trials import Trials
from lit_rft.testing.corridor import CorridorEnv, CorridorSuite
from lit_rft.testing.tiny import make_episode
from lit_rft.testing.tiny_stage import make_stage

AGENT = ReflexionAgent(ReActAgent("Act.", 900), max_trials=3, max_prompt_tokens=600)
ACTING = ActingSettings(SamplingSettings(4), parallel_episodes=1, pool=PoolSettings(threads=True))


def trial(spec: EpisodeSpec, score: float, reason: str = "step_limit", steps: int = 2) -> Episode:
    episode = make_episode(0, steps, "walk")
    episode.steps[-1] = dataclasses.replace(episode.steps[-1], score=score)
    outcome = Outcome(score, score == 1.0, score == 1.0, score < 1.0, "goal" if score == 1.0 else reason)
    return dataclasses.replace(episode, id=spec.id, outcome=outcome)


def play(trials: Trials, problems: list[EpisodeSpec], scores: dict[str, list[Any]]) -> list[str]:
    """Play by given scores; text in place of a score is the reason of a failure."""
    waiting, played = trials.start(problems, {}), []
    while waiting:
        spec = waiting.pop(0)
        played.append(spec.id)
        score = scores[spec.id.split("/")[0]].pop(0)
        failed = isinstance(score, str)
        waiting += trials.after(trial(spec, 0.0 if failed else score, score if failed else "step_limit"))
    assert trials.num_unfinished == 0
    return played


def test_first_last_and_best_trial_are_reported_apart() -> None:
    trials = Trials(AGENT, ["walk"])
    problems = [EpisodeSpec(name, "walk") for name in "abc"]
    played = play(trials, problems, {"a": [0.2, 1.0], "b": [1.0], "c": [0.3, 0.6, 0.0]})
    assert sorted(played) == ["a/trial1", "a/trial2", "b/trial1", "c/trial1", "c/trial2", "c/trial3"]
    row = trials.compute()["walk"]
    assert row["score"] == pytest.approx(50.0) and row["success"] == pytest.approx(1 / 3)
    assert row["last_trial/score"] == pytest.approx(200 / 3) and row["last_trial/success"] == pytest.approx(2 / 3)
    assert row["best_trial/score"] == pytest.approx(260 / 3) and row["best_trial/success"] == pytest.approx(2 / 3)
    assert row["metrics/trials"] == pytest.approx(2.0) and row["metrics/steps_of_all_trials"] == pytest.approx(4.0)


def test_a_failed_environment_ends_the_trials_of_a_problem() -> None:
    trials = Trials(AGENT, ["walk"])
    played = play(trials, [EpisodeSpec("a", "walk"), EpisodeSpec("b", "walk")], {"a": [0.5, "env_error"], "b": [1.0]})
    assert played == ["a/trial1", "b/trial1", "a/trial2"]
    row = trials.compute()["walk"]
    assert row["best_trial/score"] == pytest.approx(75.0) and row["last_trial/score"] == pytest.approx(100.0)


def test_an_agent_without_trials_plays_each_problem_once() -> None:
    trials = Trials(ReActAgent(), ["walk"])
    assert play(trials, [EpisodeSpec("a", "walk")], {"a": [0.0]}) == ["a"]
    assert not trials.repeated and "last_trial/score" not in trials.compute()["walk"]


def test_finished_trials_are_not_played_again() -> None:
    problems = [EpisodeSpec("a", "walk"), EpisodeSpec("b", "walk")]
    done = [trial(EpisodeSpec(name, "walk"), score) for name, score in (("a/trial1", 0.1), ("b/trial1", 1.0))]
    trials = Trials(AGENT, ["walk"])
    (spec,) = trials.start(problems, {episode.id: episode for episode in done})
    assert spec.id == "a/trial2" and "go to" in spec.notes[0] and trials.num_unfinished == 1
    (spec,) = trials.after(trial(spec, 0.2))
    assert trials.after(trial(spec, 0.3)) == []
    assert trials.compute()["walk"]["metrics/trials"] == 2.0  # of those of the earlier run, too


class KillingEnv(CorridorEnv):
    """Kills the process in its eighth step of all, once: the folder of `die_once` keeps the number."""

    def step(self, action: str) -> Any:
        file = Path(self.die_once).with_suffix(".steps")
        taken = len(file.read_bytes()) if file.exists() else 0
        file.write_bytes(b"." * (taken + 1))
        if taken == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        *answer, info = super().step(action)
        return *answer, info


class KillingSuite(CorridorSuite):
    def make_env(self) -> Any:
        env = KillingEnv(self.step_limit) if self.die_once else CorridorEnv(self.step_limit)
        env.die_once = self.die_once
        Path(self.die_once).touch() if self.die_once else None
        return env


def predict(model: Path, folder: Path, die_once: str = "") -> dict[str, dict[str, float]]:
    suite = KillingSuite(step_limit=2, die_once=die_once)
    stage = make_stage(model, acting=ACTING, agent=AGENT)
    data = TrajectoryDataModule(str(model), suite=suite, data_dir=str(folder), predict_episodes_per_task=1)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[EpisodeFiles()],
    )  # fmt: skip
    trainer.predict(stage, datamodule=data, return_predictions=False)
    return stage.evaluator.table


def test_a_killed_run_loses_at_most_the_running_trial(tiny_model_folder: Path, tmp_path: Path) -> None:
    paths = str(tiny_model_folder), str(tmp_path / "killed"), str(tmp_path / "die")
    code = "import pathlib, stages.test_trials as t; t.predict(pathlib.Path({!r}), pathlib.Path({!r}), {!r})".format(
        *paths
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, timeout=300, check=False)
    assert result.returncode == -signal.SIGKILL
    file = tmp_path / "killed" / "episodes" / "predicted.jsonl"
    kept = [episode.id for episode in read_episodes(file)]
    assert len(kept) == 3 and all(name.endswith(("/trial1", "/trial2")) for name in kept)  # the fourth was running
    table = predict(tiny_model_folder, tmp_path / "killed", str(tmp_path / "die"))
    again = predict(tiny_model_folder, tmp_path / "whole")
    assert json.dumps(table) == json.dumps(again) and table["mean"]["metrics/trials"] == 3.0
    resumed, uninterrupted = (
        {episode.id: episode for episode in read_episodes(tmp_path / name / "episodes" / "predicted.jsonl")}
        for name in ("killed", "whole")
    )
    assert resumed == uninterrupted and len(resumed) == 6
    assert all(len(e.extra["utterances"]["reflection"]) == 1 for e in resumed.values() if not e.id.endswith("trial1"))
