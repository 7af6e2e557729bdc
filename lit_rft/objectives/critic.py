r"""Critics of decisions: temporal-difference targets, regression of Q, expectile regression of V, target networks.

Offline RL of GLIDER's second stage (L_Q and L_V; the expectile is that of implicit Q-learning, Kostrikov et al. 2021,
arXiv 2110.06169). A decision is one utterance; all tensors are [N], one entry per decision of one level. The loss of a
batch split over micro-batches or processes is the sum of the parts' losses if `normalizer` counts all of it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rft.objectives.checks import check_dims, check_fraction, check_same_shape


def td_target(
    rewards: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    *,
    discount: float,
    steps: Tensor | None = None,
) -> Tensor:
    r"""Compute the temporal-difference target of Q(s, u).

        y = r + discount^k (1 - terminated) V_target(s')

    Args:
        rewards: r, reward of the decision, [N].
        next_values: V_target(s'), [N]; ignored at terminated decisions, NaN included.
        terminated: True if the decision ended its level's task, [N]; not at time limits, after which states have value.
        discount: in [0, 1].
        steps: k, environment steps of the decision, [N]; None for k = 1 (one decision per step).

    Returns:
        y, detached, [N].

    Raises:
        ValueError: The message names the wrong argument.
    """
    check_fraction(discount=discount)
    check_dims(1, rewards=rewards)
    check_same_shape(rewards=rewards, next_values=next_values, terminated=terminated)
    factor = torch.full_like(rewards, discount)
    if steps is not None:
        check_same_shape(rewards=rewards, steps=steps)
        factor = factor ** steps.to(rewards.dtype)
    bootstrap = next_values.detach().masked_fill(terminated.bool(), 0.0)
    return rewards + factor * bootstrap


class QLoss(NamedTuple):
    loss: Tensor  # scalar
    error_mean: Tensor  # detached, mean |Q - y| over the masked decisions


def q_loss(
    q_values: Tensor, targets: Tensor, *, mask: Tensor | None = None, normalizer: Tensor | float | None = None
) -> QLoss:
    r"""Regress Q towards its targets (GLIDER, L_Q).

        L_Q = 1/N sum_k ( Q(s_k, u_k) - y_k )^2

    Args:
        q_values: Q(s_k, u_k), [N]; gradients flow here only.
        targets: y_k of `td_target`, [N].
        mask: 1 on decisions with a target, [N]; None for all.
        normalizer: N, the number of decisions over all micro-batches and devices; default N of this call.

    Raises:
        ValueError: The message names the argument whose shape is wrong.
    """
    check_dims(1, q_values=q_values)
    check_same_shape(q_values=q_values, targets=targets)
    error = q_values - targets.detach()
    if mask is not None:
        check_same_shape(q_values=q_values, mask=mask)
        error = error.masked_fill(~mask.bool(), 0.0)
    counted = q_values.numel() if mask is None else mask.sum()
    loss = error.square().sum() / _count(q_values, normalizer)
    return QLoss(loss, error.detach().abs().sum() / max(int(counted), 1))


class ExpectileLoss(NamedTuple):
    loss: Tensor  # scalar
    advantage_mean: Tensor  # detached, mean Q - V


def expectile_value_loss(
    values: Tensor, target_q_values: Tensor, *, expectile: float, normalizer: Tensor | float | None = None
) -> ExpectileLoss:
    r"""Regress V towards an upper expectile of Q (GLIDER, L_V).

        L_V = 1/N sum_k |expectile - 1(x_k < 0)| x_k^2,     x_k = Q_target(s_k, u_k) - V(s_k)

    Sign: `expectile > 0.5` weights Q > V more, so V is optimistic about the given utterances, as in implicit
    Q-learning; 0.5 is half the squared error; towards 1, V(s) approaches the maximum of Q(s, .). GLIDER's paper writes
    the argument as V - Q, which taken literally would make an expectile above 0.5 pessimistic.

    Args:
        values: V(s_k), [N]; gradients flow here only.
        target_q_values: the target network's Q(s_k, u_k), of the data's utterances or of the policy's, [N].
        expectile: in (0, 1).
        normalizer: N, the number of decisions over all micro-batches and devices; default N of this call.

    Raises:
        ValueError: The message names the argument whose shape or range is wrong.
    """
    if not 0 < expectile < 1:
        raise ValueError(f"expectile must be in (0, 1), got {expectile}")
    check_dims(1, values=values)
    check_same_shape(values=values, target_q_values=target_q_values)
    difference = target_q_values.detach() - values
    below = (difference.detach() < 0).to(values.dtype)
    weight = (expectile - below).abs()
    loss = (weight * difference.square()).sum() / _count(values, normalizer)
    return ExpectileLoss(loss, difference.detach().sum() / max(values.numel(), 1))


@torch.no_grad()
def polyak_update(targets: Iterable[Tensor], sources: Iterable[Tensor], *, rate: float) -> None:
    r"""Update target parameters in place: target <- (1 - rate) target + rate source.

    Args:
        targets: parameters to update.
        sources: parameters to follow, in the same order.
        rate: in [0, 1]; 1 copies.

    Raises:
        ValueError: If the rate is out of range or the two lists differ in length or shapes.
    """
    check_fraction(rate=rate)
    for target, source in zip(targets, sources, strict=True):
        check_same_shape(source=source, target=target)
        target.lerp_(source.to(target.dtype), rate)


def discounted_returns(
    rewards: Tensor, terminated: Tensor, last: Tensor, *, discount: float, steps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Compute the observed return from each decision on, for comparison with Q.

        G_k = r_k + discount^{k's steps} G_{k+1},    G = r at a terminated decision

    Args:
        rewards: [N], the decisions of one trajectory after another, in their order.
        terminated: True if the decision ended its level's task, [N].
        last: 1 on the last decision of each trajectory, [N].
        discount: in [0, 1].
        steps: as in `td_target`.

    Returns:
        The returns [N], and whether each is known [N]: False in a trajectory that was cut by a time limit.

    Raises:
        ValueError: The message names the wrong argument.
    """
    check_fraction(discount=discount)
    check_same_shape(rewards=rewards, terminated=terminated, last=last)
    factors = [discount] * len(rewards) if steps is None else (discount ** steps.double()).tolist()
    returns, known = [0.0] * len(rewards), [False] * len(rewards)
    following, following_known = 0.0, False
    ends, finals, earned = terminated.tolist(), last.tolist(), rewards.tolist()
    for k in reversed(range(len(rewards))):
        if ends[k] or finals[k]:
            following, following_known = 0.0, bool(ends[k])
        returns[k] = following = earned[k] + factors[k] * following
        known[k] = following_known
    return rewards.new_tensor(returns), torch.tensor(known, device=rewards.device)


def _count(values: Tensor, normalizer: Tensor | float | None) -> Tensor | float:
    return max(values.numel(), 1) if normalizer is None else normalizer
