"""Group-relative training on an environment with rewards, seeds and metrics of its own."""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import lightning as L
import pytest
from grpo_parts import grpo_parts

from lit_rft.callbacks import EpisodeFiles, ScoreTable
from lit_rft.datamodules import EpisodeGroupDataModule
from lit_rft.envs import GymSuite, PoolSettings
from lit_rft.episodes import read_episodes
from lit_rft.generation import SamplingSettings
from lit_rft.stages import ActingSettings, MixedPolicyEpisodes, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import ADAPTERS, FLAT_PLAYER, differs, fit, trained

STEPS = 2
STARTS: list[tuple[int, bool]] = []  # of each episode: where it starts, and whether a thread of this process plays it


class TollRoad(gym.Env[str, str]):
    """Every step costs hundreds, by what is said; nothing is ever won."""

    def __init__(self, own_score: bool = False) -> None:
        self.own_score = own_score

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        start = int(self.np_random.integers(10**6))
        STARTS.append((start, threading.current_thread().name == "environment"))
        return f"You are at {start}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        cost = 300.0 + sum(map(ord, action)) % 97
        info: dict[str, Any] = {"metrics": {"cost": cost, "steps": self.steps}}
        if self.own_score:
            info["score"] = -1000.0 - self.steps
        return "Pay.", -cost, self.steps == STEPS, False, info


def make(
    model: Path, folder: Path, *, env_args: dict[str, Any] | None = None, rows: str = "", **options: Any
) -> tuple[MixedPolicyEpisodes, EpisodeGroupDataModule]:
    STARTS.clear()
    L.seed_everything(0, verbose=False)
    acting = ActingSettings(SamplingSettings(6), parallel_episodes=2, pool=PoolSettings(threads=True))
    stage = MixedPolicyEpisodes(
        PolicySettings(model=str(model), lora=ADAPTERS), OptimizerSettings(learning_rate=5e-3),
        exploration=SamplingSettings(6, 1.0), acting=acting, agent=FLAT_PLAYER,
        **grpo_parts(group_size=3, traces_per_group=0),
    )  # fmt: skip
    settings = {"train_episodes_per_task": None, "batch_size": 2, "eval_split": "dev", "predict_split": "dev"}
    settings |= options
    suite = GymSuite(TollRoad, env_args or {}, seeds={"train": 4, "dev": 3}, rows={"train": rows} if rows else {})
    return stage, EpisodeGroupDataModule(model=str(model), data_dir=str(folder), suite=suite, **settings)


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_group_starts_alike_and_learns_from_negative_rewards(
    by_rows: bool, tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"number": {number}}}\n' for number in range(4)))
    stage, data = make(tiny_model_folder, tmp_path, rows=str(tmp_path / "rows.jsonl") if by_rows else "")
    stage.configure_model()
    before = trained(stage)
    trainer = fit(stage, data, 1, limit_val_batches=0)
    assert len(STARTS) == 6 and all(in_thread for _, in_thread in STARTS)
    starts = [start for start, _ in STARTS]
    assert sorted(map(starts.count, set(starts))) == [3, 3]  # two groups; in each the same start three times
    for group in (0, 1):
        rollouts = [rollout for rollout in stage.samples if rollout.group == group]
        rewards = [rollout.reward for rollout in rollouts]
        assert len(rewards) == 3 and max(rewards) <= -600.0 and len(set(rewards)) > 1
        best = max(rollouts, key=lambda rollout: rollout.reward)
        assert best.advantage > 0 and sum(rollout.advantage for rollout in rollouts) == pytest.approx(0.0, abs=1e-4)
    assert differs(before, trained(stage))
    metrics = trainer.callback_metrics
    assert metrics["train/score"] == pytest.approx(100 * sum(r.reward for r in stage.samples) / 6)
    assert metrics["train/metrics/steps"] == STEPS
    assert 300.0 <= metrics["train/metrics/cost"] < 397.0
    assert metrics["train/success_rate"] == 0.0


@pytest.mark.parametrize("own_score", [False, True])
def test_records_keep_return_score_and_metrics(own_score: bool, tiny_model_folder: Path, tmp_path: Path) -> None:
    stage, data = make(tiny_model_folder, tmp_path, env_args={"own_score": own_score})
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[EpisodeFiles(), ScoreTable()],
    )  # fmt: skip
    (results,) = trainer.test(stage, datamodule=data, verbose=False)
    trainer.predict(stage, datamodule=data, return_predictions=False)
    episodes = read_episodes(tmp_path / "episodes" / "predicted.jsonl")
    assert len(episodes) == 3 and len({episode.initial_observation for episode in episodes}) == 3
    for episode in episodes:
        rewards = [step.reward for step in episode.steps]
        assert len(rewards) == STEPS and max(rewards) <= -300.0
        assert episode.total_reward == sum(rewards)
        assert episode.outcome.score == (-1000.0 - STEPS if own_score else sum(rewards))
        assert episode.extra["metrics"] == {"cost": -rewards[-1], "steps": STEPS}
        assert dataclasses.astuple(episode.outcome)[1:] == (False, True, False, "failed")
    costs = [episode.extra["metrics"]["cost"] for episode in episodes]
    assert results["test/metrics/cost"] == pytest.approx(sum(costs) / 3)  # greedy: the same episodes again
    assert json.loads((tmp_path / "scores.json").read_text())["mean"]["metrics/steps"] == STEPS
    assert sorted(STARTS[:3]) == sorted(STARTS[3:])  # two threads: which episode starts first is chance
