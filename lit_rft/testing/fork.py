"""A fork: a game of two decisions whose optimum is known, and all of its episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from lit_rft.envs.gym import GymSuite
from lit_rft.episodes import Episode, Outcome, Step

OPTIMUM = 1.0
SAFE_REWARD = 0.4


class ForkEnv(gym.Env[str, str]):
    """Go left for a safe reward, or right to two doors, of which one has a higher reward.

    "l" has reward 0.4 and ends the episode. "r" has none; then "u" has reward 1, and "d" none. The best return is 1
    (`OPTIMUM`); random actions earn 0.45, and a random door after "r" 0.5. The actions are single letters: a policy has
    a choice of tokens, and no words to learn.
    """

    observation_space = action_space = gym.spaces.Text(80)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.inside = False
        task = {"task_description": "Earn a reward."}
        return "A fork.", {"admissible": ["l", "r"], **task}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if not self.inside and action == "r":
            self.inside = True
            return "Two doors.", 0.0, False, False, {"admissible": ["u", "d"]}
        if not self.inside:
            reward = SAFE_REWARD if action == "l" else 0.0
        else:
            reward = float(action == "u")
        return "The end.", reward, True, False, {"success": reward == OPTIMUM}


def fork_suite(number: int = 8) -> GymSuite:
    """Return the fork as a suite with this many episodes per split."""
    return GymSuite(ForkEnv, step_limit=2, seeds=dict.fromkeys(("train", "dev", "test"), number))


def fork_episode(seed: int, actions: list[str], kind: str = "gold") -> Episode:
    """Make the record of an episode of the fork.

    Args:
        seed: of the episode.
        actions: to its end.
        kind: of the record's source.
    """
    env = ForkEnv()
    observation, info = env.reset(seed=seed)
    listed, steps, total, ended, success = [info["admissible"]], [], 0.0, False, False
    task = info["task_description"]
    for action in actions:
        text, reward, ended, _, info = env.step(action)
        total, success = total + reward, bool(info.get("success"))
        steps.append(Step(action, text, reward, total, True))
        listed.append(info.get("admissible", []))
    return Episode(
        id=f"fork/{seed}/{'-'.join(actions)}",
        env="ForkEnv",
        env_version="",
        task="ForkEnv",
        split="train",
        source={"kind": kind},
        task_description=task,
        initial_observation=observation,
        steps=steps,
        subgoals=[],
        outcome=Outcome(total, success, ended, not ended, "goal" if success else "end"),
        meta={"seed": seed},
        extra={"admissible": listed},
    )


def uniform_episodes() -> list[Episode]:
    """Return the episodes of random play, each as often as it is likely: return 0.45 on average."""
    plays = [(seed, ["l"]) for seed in range(4)]
    plays += [(seed, ["r", door]) for seed in range(2) for door in ("u", "d")]
    return [fork_episode(seed, actions, "random") for seed, actions in plays]


def best_episodes(number: int = 4) -> list[Episode]:
    """Return the best episode of each seed from 0 on."""
    return [fork_episode(seed, ["r", "u"]) for seed in range(number)]
