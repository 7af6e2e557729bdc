"""Rewards of completions, in all processes or none."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_rft.models.processes import all_gather_objects, sum_numbers
from lit_rft.problems import Problem
from lit_rft.rewards.base import reward_metrics, reward_parts
from lit_rft.rewards.calling import RewardError, RewardFunction, compute_rewards
from lit_rft.rollouts.rollout import Rollout


def grade(
    rollouts: Sequence[Rollout], problems: Sequence[Problem], reward: RewardFunction, device: torch.device
) -> dict[str, Tensor]:
    """Set the rewards of completions.

    All processes must call this.

    Args:
        rollouts: of one utterance each; `group` is the index of their problem.
        problems: of the batch.
        reward: the reward function.
        device: of the metrics.

    Returns:
        Metrics over all processes: seconds per completion, and counts of the reward function.

    Raises:
        RewardError: In all processes, if the reward function fails in one of them.
    """
    started = time.perf_counter()
    rewards, message = [], ""
    try:
        rewards = compute_rewards(
            reward, [rollout.text for rollout in rollouts], [problems[rollout.group].row() for rollout in rollouts],
            prompts=[list(problems[rollout.group].prompt) for rollout in rollouts],
            completion_ids=[list(rollout.transcripts[0].utterance_ids(0)) for rollout in rollouts],
        )  # fmt: skip
    except RewardError as error:
        message = str(error)
    messages = [text for text in all_gather_objects(message) if text]
    if messages:  # in every process: one that continued would wait for the others forever
        raise RewardError(messages[0])
    seconds = time.perf_counter() - started
    for rollout, value in zip(rollouts, rewards, strict=True):
        rollout.reward = float(value)
    for rollout, parts in zip(rollouts, reward_parts(reward), strict=False):  # none without parts
        rollout.reward_parts = parts
    counts = {"seconds": seconds, "number": float(len(rollouts)), **reward_metrics(reward)}
    sums = sum_numbers(counts, device)
    per_completion = sums.pop("seconds") / sums.pop("number").clamp_min(1)
    return {"reward_seconds": per_completion, **{f"reward_{name}": value for name, value in sums.items()}}
