r"""Token-level offline Q-learning: the additions of implicit language Q-learning to a critic (ILQL, arXiv 2206.11871).

Tensors are [N] or [N, V]: the tokens of a policy, one trajectory after another, V the vocabulary. The value after a
token is that of the policy's next token: observations in between are skipped. Targets, regression of Q and the
expectile of V are those of `critic.py`, with tokens for decisions.
"""

import torch
from torch import Tensor

from lit_rft.objectives.checks import check_dims, check_non_negative, check_same_shape


def next_token_values(values: Tensor, last: Tensor, *, final_values: Tensor | None = None) -> Tensor:
    r"""Return V(h_{k+1}) for each token: of the next token of its trajectory, skipping observations.

    Args:
        values: V(h_k) before token k, [N].
        last: true on the last token of each trajectory, [N].
        final_values: V after a trajectory that was cut by a time limit, read at last tokens alone, [N]; default 0.

    Returns:
        [N].

    Raises:
        ValueError: the message names the argument whose shape is wrong.
    """
    check_dims(1, values=values)
    check_same_shape(values=values, last=last)
    after = torch.zeros_like(values) if final_values is None else final_values
    check_same_shape(values=values, final_values=after)
    following = torch.cat([values[1:], values.new_zeros(min(1, len(values)))])
    return torch.where(last.bool(), after, following)


def conservative_q_loss(q_values: Tensor, actions: Tensor, *, normalizer: Tensor | float | None = None) -> Tensor:
    r"""Keep Q of tokens outside the data below Q of those in the data (the discrete form of CQL).

        L = 1/N sum_k [ log sum_w exp Q(h_k, w) - Q(h_k, a_k) ]

    Args:
        q_values: Q(h_k, .), [N, V]; gradients flow here.
        actions: a_k, token ids, [N].
        normalizer: N over all micro-batches and devices; default N of this call.

    Raises:
        ValueError: the message names the argument whose shape is wrong.
    """
    check_dims(2, q_values=q_values)
    check_same_shape(first_column=q_values[:, 0], actions=actions)
    taken = q_values.gather(1, actions[:, None]).squeeze(1)
    losses = q_values.logsumexp(1) - taken
    return losses.sum() / (max(len(losses), 1) if normalizer is None else normalizer)


def perturbed_logits(
    log_probs: Tensor, q_values: Tensor, values: Tensor, *, weight: float, max_advantage: float | None = None
) -> Tensor:
    r"""Shift a behaviour policy's logits by the advantages of tokens, to sample from the improved policy.

        z(w) = log pi_beta(w | h) + weight A(h, w),     A = Q(h, w) - V(h), at most max_advantage

    Args:
        log_probs: log pi_beta(. | h), [N, V].
        q_values: Q(h, .), the minimum of two, [N, V].
        values: V(h), [N].
        weight: >= 0; 0 is the behaviour policy.
        max_advantage: upper bound of A; 0 to only decrease probabilities, None for none.

    Returns:
        Logits, [N, V].

    Raises:
        ValueError: the message names the argument whose shape or range is wrong.
    """
    check_non_negative(weight=weight)
    check_dims(2, log_probs=log_probs)
    check_same_shape(log_probs=log_probs, q_values=q_values)
    check_same_shape(first_column=log_probs[:, 0], values=values)
    advantages = q_values - values[:, None]
    if max_advantage is not None:
        advantages = advantages.clamp(max=max_advantage)
    return log_probs + weight * advantages
