"""RLOO: each rollout against the mean of the others (Ahmadian et al. 2024, arXiv 2402.14740; Kool et al. 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_rft.rollouts import Rollout


def leave_one_out_advantages(rewards: Tensor, group: Tensor) -> Tensor:
    r"""Compare with the other members of the group: an unbiased baseline.

        A_i = R_i - 1/(n - 1) sum_{j != i} R_j

    Args:
        rewards: R, [N].
        group: number of the prompt or task of each, [N].

    Returns:
        [N], detached; 0 for a group of one.
    """
    rewards = rewards.detach()
    _, index = group.unique(return_inverse=True)
    groups = int(index.max()) + 1 if index.numel() else 0
    lowest = rewards.new_full((groups,), torch.inf).scatter_reduce(0, index, rewards, "amin")
    rewards = rewards - lowest[index]  # equal rewards: exactly 0
    number = torch.bincount(index, minlength=groups).to(rewards.dtype)[index]
    total = rewards.new_zeros(groups).index_add(0, index, rewards)[index]
    others = (total - rewards) / (number - 1).clamp_min(1)
    return torch.where(number > 1, rewards - others, 0.0)


class RLOO:
    """See `leave_one_out_advantages`; traces are members of their group.

    Departure: the paper subtracts a KL penalty from the reward; here `objective.kl_coef` (0 by default) adds a KL term
    to the loss.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> Tensor:
        return leave_one_out_advantages(
            torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64),
            torch.tensor([rollout.group for rollout in rollouts]),
        )
