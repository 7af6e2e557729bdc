"""REINFORCE++: normalised over the whole batch, not over a prompt's group (Hu et al. 2025, arXiv 2501.03262)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rft.objectives import group_advantages
from lit_rft.rollouts import Rollout


def batch_advantages(rewards: Tensor, sums: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    r"""Normalise over the batch.

        A_i = (R_i - mean) / (std + epsilon)

    Args:
        rewards: R of this process, [N].
        sums: number of rewards, their sum and the sum of their squares, over all processes, [3].
        epsilon: >= 0.

    Returns:
        [N], detached; 0 where all rewards of the batch are equal.
    """
    number, total, squares = sums.unbind()
    mean = total / number.clamp_min(1)
    variance = (squares / number.clamp_min(1) - mean.square()).clamp_min(0.0)
    # a spread below rounding is none: equal rewards must not become advantages of size 1
    std = torch.where(variance > 1e-12 * mean.square(), variance.sqrt(), torch.ones_like(variance))
    return ((rewards - mean) / (std + epsilon)).detach()


@dataclass(frozen=True)
class ReinforcePlusPlus:
    """Batch statistics; with several rollouts per prompt, optionally after subtracting each group's mean.

    Args:
        group_baseline: subtract the mean of the group first (REINFORCE++-baseline).
    """

    group_baseline: bool = False

    def __call__(self, rollouts: Sequence[Rollout]) -> Tensor:
        rewards = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64)
        if self.group_baseline and rollouts:
            group = torch.tensor([rollout.group for rollout in rollouts])
            rewards = group_advantages(rewards, group, scale_by_std=False)
        return batch_advantages(rewards, _sum_over_processes(_moments(rewards)))


def _moments(rewards: Tensor) -> Tensor:
    return torch.stack([torch.tensor(float(len(rewards)), dtype=rewards.dtype), rewards.sum(), rewards.square().sum()])


def _sum_over_processes(values: Tensor) -> Tensor:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return values
    if torch.distributed.get_backend() == "nccl":
        values = values.to(torch.cuda.current_device())
    torch.distributed.all_reduce(values)
    return values.cpu()
