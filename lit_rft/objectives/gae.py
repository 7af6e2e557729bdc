r"""Generalised advantage estimation and PPO's value loss, over the tokens or utterances of a policy.

Schulman et al. 2016 (arXiv 1506.02438) and 2017 (arXiv 1707.06347). Tensors are [N]: the decisions (tokens, or
utterances) of one trajectory after another, in their order. Observations are not decisions: the value after the last
token of an action is that of the first token of the next action.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rft.objectives.checks import check_dims, check_fraction, check_same_shape


class GAE(NamedTuple):
    advantages: Tensor  # [N], detached
    returns: Tensor  # [N], detached: targets of V


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    last: Tensor,
    *,
    discount: float,
    gae_lambda: float,
    final_values: Tensor | None = None,
    steps: Tensor | None = None,
) -> GAE:
    r"""Estimate advantages by an exponential mean over horizons.

        delta_k = r_k + g_k V_{k+1} - V_k
        A_k     = delta_k + g_k lambda A_{k+1},     R_k = A_k + V_k
        g_k     = discount^(steps of k)

    After the last decision of a trajectory, A = 0 and V is that of `final_values`.

    Args:
        rewards: r_k, [N].
        values: V(s_k) before decision k, [N].
        last: true on the last decision of each trajectory, [N].
        discount: in [0, 1].
        gae_lambda: lambda in [0, 1]; 0 is the one-step error, 1 the return minus V.
        final_values: V after each trajectory's last decision, read at these alone, [N]: of a trajectory cut by a time
            limit; 0 for one that terminated. Default 0 for all.
        steps: environment steps that pass after decision k, [N]: for tokens 0, but the last one of an utterance.
            Default 1 for all.

    Raises:
        ValueError: the message names the argument whose shape or range is wrong; a trajectory without an end.
    """
    check_fraction(discount=discount, gae_lambda=gae_lambda)
    check_dims(1, rewards=rewards)
    check_same_shape(rewards=rewards, values=values, last=last)
    for name, tensor in (("final_values", final_values), ("steps", steps)):
        if tensor is not None:
            check_same_shape(rewards=rewards, **{name: tensor})
    if last.numel() and not last[-1]:
        raise ValueError("last must be true on the last decision of each trajectory, and is false at the end")
    value, ends = values.detach().double().tolist(), last.tolist()
    after = [0.0] * len(ends) if final_values is None else final_values.detach().double().tolist()
    factor = [discount] * len(ends) if steps is None else (discount ** steps.double()).tolist()
    reward, advantages, following = rewards.detach().double().tolist(), [0.0] * len(ends), 0.0
    for k in reversed(range(len(ends))):
        next_value, following = (after[k], 0.0) if ends[k] else (value[k + 1], following)
        delta = reward[k] + factor[k] * next_value - value[k]
        advantages[k] = following = delta + factor[k] * gae_lambda * following
    advantage_tensor = values.new_tensor(advantages)
    return GAE(advantage_tensor, advantage_tensor + values.detach())


def whitened(values: Tensor, sums: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    r"""Normalise to mean 0 and standard deviation 1 over the full batch.

    Args:
        values: of this process, [N].
        sums: their number, sum and sum of squares over all processes, [3] (see `moments`).
        epsilon: >= 0, added to the standard deviation.

    Returns:
        [N]; only shifted if all values of the batch are equal.
    """
    number, total, squares = sums.to(values).unbind()
    mean = total / number.clamp_min(1)
    variance = (squares / number.clamp_min(1) - mean.square()).clamp_min(0.0)
    # a spread below rounding counts as zero: equal values must not become values of size 1
    relative = torch.finfo(values.dtype).eps ** 0.75
    std = torch.where(variance > relative * mean.square(), variance.sqrt(), torch.ones_like(variance))
    return (values - mean) / (std + epsilon)


def moments(values: Tensor) -> Tensor:
    """Return the number of values, their sum and the sum of their squares, [3], for summation over processes."""
    return torch.stack([values.new_tensor(float(values.numel())), values.sum(), values.square().sum()])


class ValueLoss(NamedTuple):
    loss: Tensor  # scalar
    clip_fraction: Tensor  # detached, share of values where clipping decided


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    clip: float | None = 0.2,
    normalizer: Tensor | float | None = None,
) -> ValueLoss:
    r"""Regress V towards the returns, with steps of limited size (PPO).

        L = 1/(2N) sum_k max( (V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2 )

    Args:
        values: V(s_k), [N]; gradients flow here only.
        old_values: before the first update on this batch, [N].
        returns: targets R, from `generalized_advantages`, [N].
        clip: > 0; None for none.
        normalizer: N over all micro-batches and devices; default N of this call.

    Raises:
        ValueError: the message names the argument whose shape or range is wrong.
    """
    check_dims(1, values=values)
    check_same_shape(values=values, old_values=old_values, returns=returns)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be > 0 or None, got {clip}")
    old, returns = old_values.detach(), returns.detach()
    errors = (values - returns).square()
    clipped = torch.zeros_like(errors, dtype=torch.bool)
    if clip is not None:
        inside = torch.minimum(torch.maximum(values, old - clip), old + clip)
        bounded = (inside - returns).square()
        clipped, errors = (bounded > errors).detach(), torch.maximum(errors, bounded)
    count = max(values.numel(), 1)
    return ValueLoss(errors.sum() / (2 * (count if normalizer is None else normalizer)), clipped.float().sum() / count)
