"""REINFORCE++: normalised over the full batch, not over a prompt's group (Hu et al. 2025, arXiv 2501.03262)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rft.objectives import group_advantages, moments, whitened
from lit_rft.rollouts import Rollout


@dataclass(frozen=True)
class ReinforcePlusPlus:
    r"""Normalise over the batch of all processes.

        A_i = (R_i - mean) / std,    or with R_i minus the mean of its group in place of R_i (group_baseline)

    Args:
        group_baseline: subtract the mean of the group first (REINFORCE++-baseline).
    """

    group_baseline: bool = False

    def __call__(self, rollouts: Sequence[Rollout]) -> Tensor:
        rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64)
        if self.group_baseline and rollouts:
            group = torch.tensor([rollout.group for rollout in rollouts])
            rewards = group_advantages(rewards, group, scale_by_std=False)
        return whitened(rewards, _sum_over_processes(moments(rewards)))


def _sum_over_processes(values: Tensor) -> Tensor:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return values
    if torch.distributed.get_backend() == "nccl":
        values = values.to(torch.cuda.current_device())
    torch.distributed.all_reduce(values)
    return values.cpu()
