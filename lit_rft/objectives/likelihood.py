r"""Likelihood of utterances, and their expected length: the parts of GLIDER's first stage.

An utterance is one decision of a policy (a subgoal, or an action): row `u` of tensors [U, L] holds its L (padded)
tokens; `utterance_mask` is 1 on real tokens, including the end of turn.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rft.objectives.checks import check_dims, check_non_negative, check_same_shape


def utterance_log_likelihood(token_log_probs: Tensor, utterance_mask: Tensor, *, average_tokens: bool = True) -> Tensor:
    r"""Compute the log-likelihood of each utterance under the policy.

        log pi(u | s) = sum_i log pi(w_i | s, w_<i)          (average_tokens=False)
        the same divided by the utterance's number of tokens (average_tokens=True, GLIDER's release)

    Args:
        token_log_probs: log pi(w_i | s, w_<i), [U, L]; values in padding are ignored, NaN included.
        utterance_mask: 1 on the utterance's tokens, [U, L].
        average_tokens: divide by the number of tokens.

    Returns:
        [U]; 0 for an utterance without tokens.

    Raises:
        ValueError: The message names the argument whose shape is wrong.
    """
    check_dims(2, token_log_probs=token_log_probs)
    check_same_shape(token_log_probs=token_log_probs, utterance_mask=utterance_mask)
    mask = utterance_mask.bool()
    total = token_log_probs.masked_fill(~mask, 0.0).sum(-1)
    return total / mask.sum(-1).clamp_min(1) if average_tokens else total


def expected_utterance_length(end_log_probs: Tensor, utterance_mask: Tensor) -> Tensor:
    r"""Compute the policy's expected utterance length under teacher forcing: a length with a gradient.

        n~ = sum_i prod_{j <= i} (1 - e_j),     e_j = pi(end of turn | s, w_<j)

    GLIDER's regulariser `lambda n` is constant in theta if n is the data's length; n~ counts the tokens that the policy
    would still write at the utterance's positions, so lambda n~ favours earlier ends.

    Args:
        end_log_probs: log e_i, the log-probability of the end-of-turn token at each position, <= 0, [U, L].
        utterance_mask: 1 on the utterance's tokens, [U, L].

    Returns:
        n~ in [0, L], [U].

    Raises:
        ValueError: The message names the argument whose shape is wrong.
    """
    check_dims(2, end_log_probs=end_log_probs)
    check_same_shape(end_log_probs=end_log_probs, utterance_mask=utterance_mask)
    mask = utterance_mask.bool()
    # log(1 - e) with a finite gradient where e rounds to 1
    ending = end_log_probs.masked_fill(~mask, -1.0).clamp_max(-torch.finfo(end_log_probs.dtype).eps)
    log_continue = torch.log(-torch.expm1(ending)).masked_fill(~mask, 0.0)
    still_writing = log_continue.cumsum(-1).exp()
    return still_writing.masked_fill(~mask, 0.0).sum(-1)


class LikelihoodLoss(NamedTuple):
    loss: Tensor  # scalar
    log_likelihood_mean: Tensor  # detached, over the utterances given
    expected_length_mean: Tensor  # detached; 0 when length_coef is 0


def utterance_likelihood_loss(
    token_log_probs: Tensor,
    utterance_mask: Tensor,
    *,
    end_log_probs: Tensor | None = None,
    length_coef: float = 0.0,
    average_tokens: bool = True,
    normalizer: Tensor | float | None = None,
) -> LikelihoodLoss:
    r"""Compute one level's term of hierarchical SFT (GLIDER, L_SFT).

        L = 1/N sum_u ( - log pi(u | s) + length_coef * n~(u) )

    Args:
        token_log_probs: log pi(w_i | s, w_<i), [U, L].
        utterance_mask: 1 on the utterances' tokens, [U, L].
        end_log_probs: log-probability of the end-of-turn token at each position, [U, L]; required for length_coef > 0.
        length_coef: GLIDER's lambda, >= 0; 0 disables the term.
        average_tokens: see `utterance_log_likelihood`.
        normalizer: N, the number of utterances over all micro-batches and devices; default U.

    Raises:
        ValueError: The message names the argument that is wrong or missing.
    """
    check_non_negative(length_coef=length_coef)
    likelihood = utterance_log_likelihood(token_log_probs, utterance_mask, average_tokens=average_tokens)
    total = -likelihood.sum()
    length = torch.zeros_like(likelihood)
    if length_coef > 0:
        if end_log_probs is None:
            raise ValueError("end_log_probs is needed when length_coef > 0, got None")
        length = expected_utterance_length(end_log_probs, utterance_mask)
        total = total + length_coef * length.sum()
    count = max(likelihood.numel(), 1)
    loss = total / (count if normalizer is None else normalizer)
    return LikelihoodLoss(loss, likelihood.detach().sum() / count, length.detach().sum() / count)
