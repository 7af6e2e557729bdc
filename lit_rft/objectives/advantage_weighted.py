r"""Advantage-weighted likelihood: GLIDER's actor loss for offline critics.

AWAC / AWR: Nair et al. 2020, arXiv 2006.09359; Peng et al. 2019, arXiv 1910.00177.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rft.objectives.checks import check_dims, check_same_shape


class AdvantageWeights(NamedTuple):
    weights: Tensor  # [N], detached, in (0, max_weight]
    clamped: Tensor  # [N] bool, True at max_weight


def advantage_weights(
    q_values: Tensor, values: Tensor, *, advantage_temperature: float, max_weight: float = 20.0
) -> AdvantageWeights:
    r"""Compute the weight of each decision of the data.

        w = min( exp( (Q(s, u) - V(s)) / advantage_temperature ), max_weight )

    Args:
        q_values: Q(s, u), [N].
        values: V(s), [N].
        advantage_temperature: GLIDER's lambda, > 0; large values approach plain likelihood.
        max_weight: upper bound of the weights, > 0.

    Returns:
        The weights, without a gradient.

    Raises:
        ValueError: The message names the argument whose shape or range is wrong.
    """
    if not advantage_temperature > 0 or not max_weight > 0:
        raise ValueError(
            f"advantage_temperature and max_weight must be > 0, got {advantage_temperature} and {max_weight}"
        )
    check_dims(1, q_values=q_values)
    check_same_shape(q_values=q_values, values=values)
    exponent = (q_values - values).detach() / advantage_temperature
    limit = torch.log(torch.as_tensor(max_weight, dtype=exponent.dtype, device=exponent.device))
    return AdvantageWeights(exponent.clamp_max(limit).exp(), exponent >= limit)  # clamp first: exp never overflows


def weighted_likelihood_loss(
    log_likelihood: Tensor, weights: Tensor, *, normalizer: Tensor | float | None = None
) -> Tensor:
    r"""Compute the weighted negative log-likelihood of the data's utterances (GLIDER, L_pi).

        L_pi = - 1/N sum_k w_k log pi(u_k | s_k)

    Args:
        log_likelihood: log pi(u_k | s_k), [N], see `utterance_log_likelihood`; gradients flow here only.
        weights: w_k, from `advantage_weights` or elsewhere, [N].
        normalizer: N, the number of decisions over all micro-batches and devices; default N of this call.

    Returns:
        Scalar.

    Raises:
        ValueError: The message names the argument whose shape is wrong.
    """
    check_dims(1, log_likelihood=log_likelihood)
    check_same_shape(log_likelihood=log_likelihood, weights=weights)
    count = max(log_likelihood.numel(), 1) if normalizer is None else normalizer
    return -(weights.detach() * log_likelihood).sum() / count
