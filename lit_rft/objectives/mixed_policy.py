r"""The policy loss of LUFFY (NeurIPS 2025, arXiv 2504.14945): on-policy rollouts and off-policy traces in one sum.

Tensors are [B, T]: one completion per row, one token per column. Values outside `completion_mask` are ignored.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rft.objectives.checks import check_dims, check_non_negative, check_same_shape


def shape_policy(importance_ratio: Tensor, *, policy_shaping: float) -> Tensor:
    r"""Apply regularised importance sampling, which increases the gradient of unlikely tokens of traces.

        f(x) = x / (x + gamma),     f'(x) = gamma / (x + gamma)^2

    Args:
        importance_ratio: x = pi_theta / pi_phi >= 0, any shape.
        policy_shaping: gamma > 0 (LUFFY: 0.1).

    Raises:
        ValueError: For a gamma that is not positive.
    """
    _check_shaping(policy_shaping)
    return importance_ratio / (importance_ratio + policy_shaping)


def _check_shaping(policy_shaping: float) -> None:
    if not policy_shaping > 0:
        raise ValueError(f"policy_shaping must be > 0, got {policy_shaping}")


class OnPolicyTerms(NamedTuple):
    losses: Tensor  # [B, T], one per token
    clipped: Tensor  # [B, T] bool, True where clipping is active


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.2,
) -> OnPolicyTerms:
    r"""Compute PPO's loss of each token (Schulman et al. 2017, arXiv 1707.06347): CLIP(r, A, eps) with a minus sign.

        l = -min( r A, clamp(r, 1 - clip_low, 1 + clip_high) A ),     r = pi_theta / pi_old

    Args:
        log_probs: log pi_theta, [B, T]; gradients flow here only.
        old_log_probs: log pi_old, of the sampling policy, [B, T].
        advantages: A, [B, T].
        clip_low, clip_high: >= 0; None for no bound on that side (both None: LUFFY's release).

    Raises:
        ValueError: The message names the argument whose shape or range is wrong.
    """
    check_dims(2, log_probs=log_probs)
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    check_non_negative(clip_low=clip_low or 0.0, clip_high=clip_high or 0.0)
    ratio = (log_probs - old_log_probs.detach()).exp()
    low = None if clip_low is None else 1.0 - clip_low
    high = None if clip_high is None else 1.0 + clip_high
    inside = ratio if low is None and high is None else ratio.clamp(low, high)
    advantages = advantages.detach()
    plain, clipped = -ratio * advantages, -inside * advantages
    return OnPolicyTerms(torch.maximum(plain, clipped), (clipped > plain).detach())


def off_policy_losses(
    log_probs: Tensor,
    advantages: Tensor,
    *,
    behaviour_log_probs: Tensor | None = None,
    policy_shaping: float | None = 0.1,
) -> Tensor:
    r"""Compute the loss of each token of a trace, without clipping.

        l = -f( pi_theta / pi_phi ) A,     pi_phi = 1 where the behaviour policy's probabilities are unknown

    Args:
        log_probs: log pi_theta, [B, T]; gradients flow here only.
        advantages: A, [B, T].
        behaviour_log_probs: log pi_phi, [B, T]; NaN at tokens where it is unknown; None if all are.
        policy_shaping: gamma of `shape_policy`; None: f is the identity (plain mixed-policy GRPO).

    Returns:
        [B, T].

    Raises:
        ValueError: The message names the argument whose shape or range is wrong.
    """
    check_dims(2, log_probs=log_probs)
    check_same_shape(log_probs=log_probs, advantages=advantages)
    log_ratio = log_probs
    if behaviour_log_probs is not None:
        check_same_shape(log_probs=log_probs, behaviour_log_probs=behaviour_log_probs)
        log_ratio = log_probs - behaviour_log_probs.detach().nan_to_num(0.0)
    if policy_shaping is None:
        return -log_ratio.exp() * advantages.detach()
    _check_shaping(policy_shaping)
    # x / (x + gamma), also where x itself overflows: a trace's token that was next to impossible under pi_phi
    shaped = torch.sigmoid(log_ratio - math.log(policy_shaping))
    return -shaped * advantages.detach()


class MixedPolicyLoss(NamedTuple):
    loss: Tensor  # scalar
    on_policy_loss: Tensor  # detached, mean over the on-policy tokens given
    off_policy_loss: Tensor  # detached, mean over the off-policy tokens given
    clip_fraction: Tensor  # detached, share of the on-policy tokens
    trace_prob_mean: Tensor  # detached, mean pi_theta of the off-policy tokens


def mixed_policy_loss(
    log_probs: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    off_policy_mask: Tensor,
    *,
    old_log_probs: Tensor | None = None,
    behaviour_log_probs: Tensor | None = None,
    policy_shaping: float | None = 0.1,
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.2,
    token_weights: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> MixedPolicyLoss:
    r"""Compute the negative of LUFFY's objective J.

        L = 1/Z ( sum_{j off} sum_t -f(pi_theta / pi_phi) A_j  +  sum_{i on} sum_t -CLIP(r_it, A_i, eps) )

    Args:
        log_probs: log pi_theta of the completions' tokens, [B, T]; gradients flow here only.
        advantages: A of each completion, [B], or of each token, [B, T].
        completion_mask: 1 on tokens in the loss, [B, T].
        off_policy_mask: 1 on off-policy completions (traces), [B].
        old_log_probs: log pi_old of on-policy tokens, [B, T]; None for ratio 1: the policy is unchanged since sampling.
        behaviour_log_probs: see `off_policy_losses`.
        policy_shaping: gamma, see `shape_policy`; None for none.
        clip_low, clip_high: see `clipped_surrogate`.
        token_weights: factors of single tokens, [B, T], for example `truncated_importance_weights`.
        normalizer: Z, over all micro-batches and devices: the number of their tokens (the paper), or the maximum length
            of a completion (the release); default the number of tokens of this call.

    Raises:
        ValueError: The message names the argument whose shape or range is wrong.
    """
    check_dims(2, log_probs=log_probs)
    check_same_shape(log_probs=log_probs, completion_mask=completion_mask)
    check_same_shape(off_policy_mask=off_policy_mask, first_column=log_probs[:, 0])
    check_same_shape(log_probs=log_probs, old_log_probs=log_probs if old_log_probs is None else old_log_probs)
    mask, off = completion_mask.bool(), off_policy_mask.bool()[:, None]
    per_token = advantages[:, None].expand_as(log_probs) if advantages.dim() == 1 else advantages
    safe = log_probs.masked_fill(~mask, 0.0)
    old = safe.detach() if old_log_probs is None else old_log_probs.masked_fill(~mask | off, 0.0)
    on_mask, off_mask = mask & ~off, mask & off
    on_losses, clipped = clipped_surrogate(
        safe.masked_fill(off, 0.0), old.masked_fill(off, 0.0), per_token, clip_low=clip_low, clip_high=clip_high
    )
    off_losses = off_policy_losses(
        safe, per_token, behaviour_log_probs=behaviour_log_probs, policy_shaping=policy_shaping
    )
    losses = torch.where(off, off_losses, on_losses)
    if token_weights is not None:
        check_same_shape(log_probs=log_probs, token_weights=token_weights)
        losses = losses * token_weights.detach()
    losses = losses.masked_fill(~mask, 0.0)
    loss = losses.sum() / (mask.sum().clamp_min(1) if normalizer is None else normalizer)
    return MixedPolicyLoss(
        loss,
        _mean(losses, on_mask),
        _mean(losses, off_mask),
        _mean(clipped.to(losses.dtype), on_mask),
        _mean(safe.exp(), off_mask),
    )


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.detach().masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)


def truncated_importance_weights(log_probs: Tensor, sampler_log_probs: Tensor, *, max_weight: float = 2.0) -> Tensor:
    r"""Compute weights that correct for sampling in lower precision, or by another engine, than training.

        w = min( pi / pi_sampler, max_weight )

    Args:
        log_probs: of the sampled tokens under the training policy at the time of sampling, [B, T].
        sampler_log_probs: as reported by the sampler, [B, T].
        max_weight: > 0.

    Returns:
        [B, T], detached.

    Raises:
        ValueError: The message names the argument whose shape or range is wrong.
    """
    if not max_weight > 0:
        raise ValueError(f"max_weight must be > 0, got {max_weight}")
    check_same_shape(log_probs=log_probs, sampler_log_probs=sampler_log_probs)
    return (log_probs - sampler_log_probs).detach().exp().clamp_max(max_weight)


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    r"""Estimate KL(pi_theta || pi_ref) per sampled token, never negative (Schulman's k3, as in GRPO).

        k = pi_ref / pi_theta - log(pi_ref / pi_theta) - 1

    Args:
        log_probs: log pi_theta, any shape; gradients flow here only.
        ref_log_probs: log pi_ref, the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    log_ratio = ref_log_probs.detach() - log_probs
    return log_ratio.exp() - log_ratio - 1.0


def masked_token_mean(values: Tensor, mask: Tensor, *, normalizer: Tensor | float | None = None) -> Tensor:
    """Average over all tokens of a batch, for example entropies or `kl_estimate`.

    Args:
        values: [B, T].
        mask: 1 on tokens in the mean, [B, T].
        normalizer: their number over all micro-batches and devices; default the number of tokens of this call.

    Returns:
        Scalar.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(values=values, mask=mask)
    total = values.masked_fill(~mask.bool(), 0.0).sum()
    return total / (mask.sum().clamp_min(1) if normalizer is None else normalizer)
