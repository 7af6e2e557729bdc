"""Advantages of completions by comparison within a group (GRPO: Shao et al. 2024, arXiv 2402.03300; LUFFY)."""

import torch
from torch import Tensor

from lit_rft.objectives.checks import check_dims, check_non_negative, check_same_shape


def group_advantages(
    rewards: Tensor,
    group: Tensor,
    *,
    off_policy_mask: Tensor | None = None,
    on_policy_statistics: bool = False,
    scale_by_std: bool = True,
    std_epsilon: float = 1e-6,
) -> Tensor:
    r"""Compare each completion with the others of its prompt.

        A_i = ( R_i - mean(R_group) ) / ( std(R_group) + std_epsilon )       scale_by_std (LUFFY's paper)
        A_i =   R_i - mean(R_group)                                          else (LUFFY's release, Dr. GRPO)

    Mean and (unbiased) standard deviation are over the full group, on- and off-policy members together, or over its
    on-policy members only. Groups may have any sizes, with members in any order. The advantage of a single member is 0.
    A standard deviation of 0 counts as 1 (as in the release). A group without on-policy members uses all of them.

    Args:
        rewards: R_i, [N].
        group: any integer index of each completion's prompt, [N].
        off_policy_mask: True on off-policy members (traces), [N]; required for `on_policy_statistics`.
        on_policy_statistics: exclude off-policy members from mean and standard deviation.
        scale_by_std: divide by the standard deviation.
        std_epsilon: >= 0.

    Returns:
        [N], detached.

    Raises:
        ValueError: The message names the argument that is wrong or missing.
    """
    check_dims(1, rewards=rewards)
    check_same_shape(rewards=rewards, group=group)
    check_non_negative(std_epsilon=std_epsilon)
    rewards = rewards.detach()
    _, index = group.unique(return_inverse=True)
    # subtract the group's minimum first: equal rewards become exact zeros
    lowest = rewards.new_full((int(index.max()) + 1 if index.numel() else 0,), float("inf"))
    rewards = rewards - lowest.scatter_reduce(0, index, rewards, "amin")[index]
    counted = torch.ones_like(rewards)
    if on_policy_statistics:
        if off_policy_mask is None:
            raise ValueError("on_policy_statistics needs off_policy_mask, got None")
        check_same_shape(rewards=rewards, off_policy_mask=off_policy_mask)
        on_policy = (~off_policy_mask.bool()).to(rewards.dtype)
        counted = torch.where(_sum_by(on_policy, index)[index] > 0, on_policy, counted)
    number = _sum_by(counted, index)
    mean = _sum_by(counted * rewards, index) / number
    centred = rewards - mean[index]
    if not scale_by_std:
        return centred
    variance = _sum_by(counted * centred.square(), index) / (number - 1).clamp_min(1)
    std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
    return centred / (std[index] + std_epsilon)


def _sum_by(values: Tensor, index: Tensor) -> Tensor:
    """Sum the values [N] with the same index, [number of indices]."""
    return values.new_zeros(int(index.max()) + 1 if index.numel() else 0).index_add(0, index, values)
