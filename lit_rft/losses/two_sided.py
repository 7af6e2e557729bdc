"""Two-sided clipping: a bound on the ratio of mistakes (dual-clip PPO, arXiv 1912.09729; INTELLECT-2, 2505.07291)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_rft.losses.on_policy import on_policy_tokens
from lit_rft.objectives import Sums, mean_parts
from lit_rft.objectives.checks import check_non_negative
from lit_rft.rollouts import LossNeeds, Normalizer, RolloutBatch


def two_sided_losses(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    max_ratio: float,
) -> tuple[Tensor, Tensor]:
    r"""Compute PPO's loss of each token, with a bounded ratio where the advantage is negative.

        l = -min( min(r, max_ratio) A, clamp(r, 1 - clip_low, 1 + clip_high) A ),     r = pi_theta / pi_old

    PPO's minimum leaves r A unbounded for A < 0: a token that became far more likely gives a huge gradient.

    Args:
        log_probs: log pi_theta, [B, T]; gradients flow here only.
        old_log_probs: log pi_old, [B, T].
        advantages: A, [B, T].
        mask: true on the tokens that count, [B, T].
        clip_low: >= 0.
        clip_high: >= 0.
        max_ratio: > 1 + clip_high.

    Returns:
        The losses, [B, T], 0 outside the mask; and whether clipping decided, [B, T] bool.

    Raises:
        ValueError: `max_ratio` is inside the clipping range.
    """
    check_non_negative(clip_low=clip_low, clip_high=clip_high)
    if not max_ratio > 1 + clip_high:
        raise ValueError(f"max_ratio must be > 1 + clip_high = {1 + clip_high}, got {max_ratio}")
    ratio = (log_probs - old_log_probs).masked_fill(~mask, 0.0).exp()
    plain = -ratio * advantages
    bounded = -ratio.clamp(max=max_ratio) * advantages
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    losses = torch.maximum(bounded, clipped).masked_fill(~mask, 0.0)
    return losses, (losses != plain).detach() & mask


@dataclass(frozen=True)
class TwoSidedClip:
    """PPO's clipping with a second bound; without clipping and bound active it is `MixedPolicyLoss` without traces.

    Args:
        clip_low: see `two_sided_losses`.
        clip_high: upwards.
        max_ratio: largest ratio of a token with a negative advantage.
        normalizer: divide the sum over tokens by their number (tokens), or by the maximum length of a rollout
            (max_length).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    max_ratio: float = 4.0
    normalizer: Literal["tokens", "max_length"] = "tokens"

    def __post_init__(self) -> None:
        check_non_negative(**{"loss.clip_low": self.clip_low, "loss.clip_high": self.clip_high})
        if not self.max_ratio > 1 + self.clip_high:
            raise ValueError(f"loss.max_ratio must be > 1 + clip_high = {1 + self.clip_high}, got {self.max_ratio}")
        if self.normalizer not in ("tokens", "max_length"):
            raise ValueError(f"loss.normalizer must be tokens or max_length, got {self.normalizer!r}")

    @property
    def needs(self) -> LossNeeds:
        return LossNeeds(no_group_traces=True)

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        tokens = on_policy_tokens("TwoSidedClip", log_probs, rollouts)
        losses, clipped = two_sided_losses(
            *tokens, clip_low=self.clip_low, clip_high=self.clip_high, max_ratio=self.max_ratio
        )
        divisor = normalizer.tokens if self.normalizer == "tokens" else normalizer.max_length
        return losses.sum() / divisor, {"clip_fraction": mean_parts(clipped.sum(), tokens.mask.sum())}
