"""Advantages of rollouts. A stage accepts any function or object with this signature by `class_path`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_rft.models.processes import sum_numbers
from lit_rft.objectives import group_advantages
from lit_rft.rollouts.rollout import Rollout

AdvantagesFunction = Callable[..., Any]  # an `Advantages`; the command line takes callables by class_path


DecisionAdvantages = Sequence[Sequence[Sequence[float]]]  # of rollouts, their transcripts, and decisions or tokens


class Advantages(Protocol):
    """Advantages of this process's rollouts, given their rewards; groups are complete.

    `Rollout.decisions` has the states and rewards of an episode's decisions.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> Tensor | DecisionAdvantages:
        """Return one advantage per rollout, [N]; or for each of its transcripts one per decision, or one per token."""
        ...


@dataclass(frozen=True)
class GroupAdvantages:
    """Comparison within a group (see `lit_rft.objectives.group_advantages`).

    Args:
        scale_by_std: divide by the standard deviation of the group's rewards.
        on_policy_statistics: use only the on-policy rollouts of a group for mean and standard deviation.
    """

    scale_by_std: bool = True
    on_policy_statistics: bool = False

    def __call__(self, rollouts: Sequence[Rollout]) -> Tensor:
        return group_advantages(
            torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64),
            torch.tensor([rollout.group for rollout in rollouts]),
            off_policy_mask=torch.tensor([rollout.off_policy for rollout in rollouts]),
            on_policy_statistics=self.on_policy_statistics,
            scale_by_std=self.scale_by_std,
        )


def assign_advantages(rollouts: Sequence[Rollout], advantages: AdvantagesFunction) -> list[Rollout]:
    """Set the advantages of the rollouts that have one, and return these; set the mean rewards of all groups."""
    set_group_rewards(rollouts)
    compared = [rollout for rollout in rollouts if rollout.counts_in_baseline]
    # without rollouts, too: advantages may sum over all processes
    values = advantages(compared)
    values = values.tolist() if isinstance(values, Tensor) else values
    for rollout, value in zip(compared, values, strict=True):
        rollout.set_advantages(value)
    return compared


def set_group_rewards(rollouts: Sequence[Rollout]) -> None:
    """Set the mean reward of the sampled members of each group; a group without any keeps what it has."""
    rewards: dict[int, list[float]] = {}
    for rollout in rollouts:
        if not rollout.off_policy:
            rewards.setdefault(rollout.group, []).append(rollout.reward)
    for rollout in rollouts:
        if values := rewards.get(rollout.group):
            rollout.group_reward = sum(values) / len(values)


def group_metrics(rollouts: Sequence[Rollout], device: torch.device) -> dict[str, Tensor]:
    """Return means and shares over the rollouts of all processes."""
    return summarize_groups(sum_numbers(group_statistics(rollouts), device))


def group_statistics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return sums over the rollouts and groups of this process, for summation over processes."""
    compared = [rollout for rollout in rollouts if rollout.counts_in_baseline]
    on_policy = [rollout for rollout in compared if not rollout.off_policy]
    groups: dict[int, list[float]] = {}
    for rollout in compared:
        groups.setdefault(rollout.group, []).append(rollout.reward)
    rewards = [rollout.reward for rollout in on_policy]
    return {
        "completions": float(len(on_policy)),
        "reward": sum(rewards),
        "reward_squared": sum(reward * reward for reward in rewards),
        "trace_reward": sum(rollout.reward for rollout in compared if rollout.off_policy),
        "traces": float(len(compared) - len(on_policy)),
        "groups": float(len(groups)),
        "without_signal": float(sum(len(set(values)) == 1 for values in groups.values())),
        "length": float(sum(rollout.length for rollout in on_policy)),
        "truncated": float(sum(not rollout.finished for rollout in on_policy)),
        "nll": -sum(value for rollout in on_policy for row in rollout.sampled_log_probs for value in row),
    }


def summarize_groups(sums: dict[str, Any]) -> dict[str, Tensor]:
    """Return means and shares from `group_statistics`, summed over processes."""
    report: dict[str, Tensor] = {}
    if sums["completions"] > 0:
        n = sums["completions"]
        mean = sums["reward"] / n
        report = {
            "reward": mean,
            "reward_std": (sums["reward_squared"] / n - mean**2).clamp_min(0).sqrt(),
            "completion_length": sums["length"] / n,
            "truncated_fraction": sums["truncated"] / n,
            # sampled tokens give an unbiased estimate of the entropy at no cost
            "sampled_entropy": sums["nll"] / sums["length"].clamp_min(1),
        }
    if sums["groups"] > 0:
        report["no_signal_fraction"] = sums["without_signal"] / sums["groups"]
    if sums["traces"] > 0:
        report["trace_reward"] = sums["trace_reward"] / sums["traces"]
    return report
