"""GSPO's loss (Zheng et al. 2025, arXiv 2507.18071), as a user of the library would write it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rft.objectives import Sums, mean_parts
from lit_rft.rollouts import Normalizer, RolloutBatch


def sequence_losses(
    log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    r"""Clip one importance ratio per sequence, the geometric mean of those of its tokens.

        l_i = -min( s_i A_i, clamp(s_i, 1 - clip_low, 1 + clip_high) A_i ),     s_i = (pi_theta / pi_old)^(1 / |y_i|)

    Args:
        log_probs, old_log_probs: of the tokens, [B, T].
        mask: 1 on the tokens that count, [B, T].
        advantages: [B].
    Returns: losses and whether the clip decided, [B] each.
    """
    log_ratio = (log_probs - old_log_probs.detach()).masked_fill(~mask, 0.0)
    ratio = (log_ratio.sum(1) / mask.sum(1).clamp_min(1)).exp()
    plain, clipped = -ratio * advantages, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return torch.maximum(plain, clipped).masked_fill(~mask.any(1), 0.0), (clipped > plain) & mask.any(1)


@dataclass(frozen=True)
class GSPOLoss:
    """The mean over completions of `sequence_losses`.

    Args:
        clip_low, clip_high: how far a sequence's ratio may leave 1.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        old = log_probs.detach() if rollouts.old_log_probs is None else rollouts.old_log_probs
        losses, clipped = sequence_losses(
            log_probs, old, rollouts.mask, rollouts.advantages, self.clip_low, self.clip_high
        )
        number = rollouts.mask.any(1).sum()
        return losses.sum() / normalizer.rollouts, {"clip_fraction": mean_parts(clipped.float().sum(), number)}
