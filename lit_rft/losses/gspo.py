"""GSPO: one importance ratio per sequence (Zheng et al. 2025, arXiv 2507.18071)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rft.losses.on_policy import on_policy_tokens
from lit_rft.objectives import Sums, mean_parts
from lit_rft.objectives.checks import check_non_negative
from lit_rft.rollouts import LossNeeds, Normalizer, RolloutBatch


def sequence_ratio_losses(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    r"""Compute GSPO's loss of each token, in its token form, which allows advantages per token (eq. 13-16).

        l_it = -1/|y_i| min( s_it A_it, clamp(s_it, 1 - clip_low, 1 + clip_high) A_it )
        s_it = sg[s_i] pi_theta(y_it) / sg[pi_theta(y_it)],     s_i = (pi_theta(y_i) / pi_old(y_i))^(1 / |y_i|)

    With the same advantage in all tokens, value and gradient of their sum are those of the sequence form (eq. 5).

    Args:
        log_probs: log pi_theta, [B, T]; gradients flow here only.
        old_log_probs: log pi_old, [B, T].
        advantages: A, [B, T].
        mask: true on the tokens of the sequence, [B, T].
        clip_low: lowest ratio is 1 - clip_low, >= 0.
        clip_high: highest ratio is 1 + clip_high, >= 0.

    Returns:
        The losses, [B, T], 0 outside the mask; and whether clipping decided, [B, T] bool.
    """
    check_non_negative(clip_low=clip_low, clip_high=clip_high)
    log_probs = log_probs.masked_fill(~mask, 0.0)
    log_ratio = (log_probs - old_log_probs).masked_fill(~mask, 0.0).detach()
    length = mask.sum(1, keepdim=True).clamp_min(1)
    ratio = (log_ratio.sum(1, keepdim=True) / length + log_probs - log_probs.detach()).exp()
    plain, clipped = -ratio * advantages, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    losses = torch.maximum(plain, clipped).masked_fill(~mask, 0.0) / length
    return losses, (clipped > plain).detach() & mask


@dataclass(frozen=True)
class GSPO:
    """Clipping of sequence ratios; the mean over rollouts. A sequence is a completion, or one turn of an episode.

    Args:
        clip_low: see `sequence_ratio_losses`; ratios of sequences are close to 1, so that the paper's ranges are small.
        clip_high: upwards.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        check_non_negative(**{"loss.clip_low": self.clip_low, "loss.clip_high": self.clip_high})

    @property
    def needs(self) -> LossNeeds:
        return LossNeeds(no_group_traces=True)

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        tokens = on_policy_tokens("GSPO", log_probs, rollouts)
        losses, clipped = sequence_ratio_losses(*tokens, clip_low=self.clip_low, clip_high=self.clip_high)
        return losses.sum() / normalizer.rollouts, {"clip_fraction": mean_parts(clipped.sum(), tokens.mask.sum())}
