"""Shaped rewards: what changes in an episode, and what stays the environment's."""

import math
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from lit_rft.cli import config_folder
from lit_rft.command_line import build
from lit_rft.envs import EpisodeEnv, EpisodeSpec, GymSuite
from lit_rft.envs.base import describe_settings, expert_of
from lit_rft.envs.collect import collect_expert_episodes
from lit_rft.envs.games import rooms
from lit_rft.envs.shaped import ShapedSuite

ERRANDS = GymSuite("lit_rft.envs.games.Errands", {"customers": ["Anna"], "wrong_cost": 0.5}, step_limit=4)
YAML = """
data:
  init_args:
    suite:
      class_path: lit_rft.envs.shaped.ShapedSuite
      init_args:
        lowest: -0.02
        suite:
          class_path: lit_rft.envs.GymSuite
          init_args: {env: lit_rft.envs.games.Errands, env_args: {wrong_cost: 0.5}, step_limit: 20}
"""


class Quiz(gym.Env[str, str]):
    """An action with the reward that it names, without score and success; ``end`` has reward 0.05, and ends."""

    observation_space = action_space = gym.spaces.Text(20)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return "quiz", {"metrics": {"asked": 1.0}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "next", 0.05 if action == "end" else float(action), action == "end", False, {}


def played(suite: ShapedSuite, *actions: str) -> list[tuple[float, dict[str, Any]]]:
    """Rewards and infos of an episode."""
    env = EpisodeEnv(suite.make_env())
    env.reset(EpisodeSpec("e", seed=0, options={} if suite.suite is not ERRANDS else {"customer": "Anna"}))
    return [(reward, info) for _, reward, _, _, info in map(env.step, actions)]


def test_penalties_are_limited_and_actions_cost() -> None:
    results = played(ShapedSuite(GymSuite(f"{__name__}.Quiz"), step_cost=0.1, lowest=-0.2), "-1", "0.5", "-0.15")
    assert [reward for reward, _ in results] == pytest.approx([-0.3, 0.4, -0.25])
    assert [info["score"] for _, info in results] == pytest.approx([-0.3, 0.1, -0.15])
    assert [info["metrics"]["task_score"] for _, info in results] == pytest.approx([-1.0, -0.5, -0.65])
    assert results[0][1]["metrics"]["asked"] == 1.0  # the environment's own metrics stay


def test_success_is_by_the_own_reward() -> None:
    """The last reward is negative after the cost of the action."""
    reward, info = played(ShapedSuite(GymSuite(f"{__name__}.Quiz"), step_cost=0.1), "end")[0]
    assert reward == pytest.approx(-0.05) and info["success"] and info["reason"] == "goal"


def test_an_own_score_moves_with_the_rewards() -> None:
    plain, limited = (played(ShapedSuite(ERRANDS, lowest=lowest), "buy", "left") for lowest in (None, -0.1))
    assert [reward for reward, _ in limited] == pytest.approx([max(-0.1, reward) for reward, _ in plain])
    assert plain[-1][1]["score"] == plain[-1][1]["metrics"]["task_score"]
    assert limited[-1][1]["score"] == pytest.approx(sum(reward for reward, _ in limited))
    assert limited[-1][1]["metrics"]["task_score"] == plain[-1][1]["score"]


def test_each_episode_starts_from_zero() -> None:
    env = EpisodeEnv(ShapedSuite(GymSuite(f"{__name__}.Quiz"), step_cost=0.1).make_env())
    for _ in range(2):
        env.reset(EpisodeSpec("e", seed=0))
        assert env.step("1")[4]["score"] == pytest.approx(0.9)


def test_experts_play_it(tmp_path: Path) -> None:
    """Stored episodes have shaped scores, and say by which settings."""
    suite = ShapedSuite(GymSuite("lit_rft.envs.games.KeyRooms", expert_policy=rooms.expert), step_cost=0.1)
    assert pickle.loads(pickle.dumps(suite)) == suite and expert_of(suite) is not None
    (episode,) = collect_expert_episodes(
        suite, suite.episodes("train", limit=1), tmp_path / "e.jsonl", num_workers=1, progress=False
    )
    assert episode.extra["metrics"]["task_score"] == pytest.approx(episode.outcome.score + 0.1 * len(episode.steps))
    assert episode.outcome.score == pytest.approx(sum(step.reward for step in episode.steps))
    assert episode.source["settings"]["suite"] == describe_settings(suite)
    assert describe_settings(suite) != describe_settings(suite.suite)


@pytest.mark.parametrize("key", ["step_cost", "lowest"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        ShapedSuite(ERRANDS, **{key: value})
    with pytest.raises(ValueError, match="step_cost must be >= 0"):
        ShapedSuite(ERRANDS, step_cost=-0.1)


def test_it_is_an_option_of_a_config(tmp_path: Path) -> None:
    """A suite around a suite, in YAML."""
    config = tmp_path / "shaped.yaml"
    config.write_text(YAML)
    data = build(["-c", str(config_folder() / "grpo" / "text_env.yaml"), "-c", str(config)], run=False).datamodule
    assert data.suite == ShapedSuite(
        GymSuite("lit_rft.envs.games.Errands", {"wrong_cost": 0.5}, step_limit=20), lowest=-0.02
    )


def test_more_episodes_of_a_shaped_suite_extend_a_file(tmp_path: Path) -> None:
    def collected(number: int, lowest: float = -0.1) -> int:
        tasks = GymSuite("lit_rft.envs.games.KeyRooms", seeds={"train": number}, expert_policy=rooms.expert)
        suite = ShapedSuite(tasks, lowest=lowest)
        file = tmp_path / "episodes.jsonl"
        return len(collect_expert_episodes(suite, suite.episodes("train"), file, num_workers=1, progress=False))

    assert [collected(1), collected(2)] == [1, 2]
    with pytest.raises(ValueError, match=r"lowest was -0\.1, is -0\.2"):
        collected(3, lowest=-0.2)
