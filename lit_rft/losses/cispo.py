"""CISPO: clip the importance weight, keep every token's gradient (MiniMax-M1, arXiv 2506.13585)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rft.losses.on_policy import on_policy_tokens
from lit_rft.objectives import Sums, mean_parts
from lit_rft.objectives.checks import check_non_negative
from lit_rft.rollouts import LossNeeds, Normalizer, RolloutBatch


def clipped_weight_losses(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float | None,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    r"""Compute CISPO's loss of each token (eq. 4-5): REINFORCE with a clipped importance weight.

        l = -sg[ clamp(r, 1 - clip_low, 1 + clip_high) ] A log pi_theta,     r = pi_theta / pi_old

    Args:
        log_probs: log pi_theta, [B, T]; gradients flow here only.
        old_log_probs: log pi_old, [B, T].
        advantages: A, [B, T].
        mask: true on the tokens that count, [B, T].
        clip_low: lowest weight is 1 - clip_low, >= 0; None for no lower bound (the paper).
        clip_high: highest weight is 1 + clip_high, >= 0.

    Returns:
        The losses, [B, T], 0 outside the mask; and whether the weight was clipped, [B, T] bool.
    """
    check_non_negative(clip_low=clip_low or 0.0, clip_high=clip_high)
    log_probs = log_probs.masked_fill(~mask, 0.0)
    ratio = (log_probs - old_log_probs).masked_fill(~mask, 0.0).detach().exp()
    weight = ratio.clamp(None if clip_low is None else 1 - clip_low, 1 + clip_high)
    return torch.where(mask, -weight * advantages * log_probs, 0.0), (weight != ratio) & mask


@dataclass(frozen=True)
class CISPO:
    """Clipped importance weights; the mean over tokens.

    Args:
        clip_low: see `clipped_weight_losses`; null for no lower bound.
        clip_high: upwards.
    """

    clip_low: float | None = None
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        check_non_negative(**{"loss.clip_low": self.clip_low or 0.0, "loss.clip_high": self.clip_high})

    @property
    def needs(self) -> LossNeeds:
        return LossNeeds(no_group_traces=True)

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        tokens = on_policy_tokens("CISPO", log_probs, rollouts)
        losses, clipped = clipped_weight_losses(*tokens, clip_low=self.clip_low, clip_high=self.clip_high)
        return losses.sum() / normalizer.tokens, {"clip_fraction": mean_parts(clipped.sum(), tokens.mask.sum())}
