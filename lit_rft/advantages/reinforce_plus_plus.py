"""REINFORCE++: normalised over the full batch, not over a prompt's group (Hu et al. 2025, arXiv 2501.03262)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rft.models.processes import sum_over_processes
from lit_rft.objectives import group_advantages, moments, whitened
from lit_rft.rollouts import Rollout


@dataclass(frozen=True)
class ReinforcePlusPlus:
    r"""Normalise over the batch of all processes.

        A_i = (R_i - mean) / std,    or with R_i minus the mean of its group in place of R_i (group_baseline)

    Departure: the paper subtracts a KL penalty from each token's reward; here `objective.kl_coef` (0 by default) adds a
    KL term to the loss.

    Args:
        group_baseline: subtract the mean of the group first (REINFORCE++-baseline).
    """

    group_baseline: bool = False

    def __call__(self, rollouts: Sequence[Rollout]) -> Tensor:
        rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64)
        if self.group_baseline and rollouts:
            group = torch.tensor([rollout.group for rollout in rollouts])
            rewards = group_advantages(rewards, group, scale_by_std=False)
        return whitened(rewards, sum_over_processes({"rewards": moments(rewards)})["rewards"])
