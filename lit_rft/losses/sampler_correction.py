"""Importance weights for rollouts sampled in another precision, or by another engine, than the training policy.

Every policy loss is proportional to its advantage, for a fixed sign of it, and the weights are not negative: weighted
advantages weight any loss.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rft.objectives import Sums, mean_parts, truncated_importance_weights
from lit_rft.rollouts import LossNeeds, MixedPolicyLoss, Normalizer, RolloutBatch, needs_of

# log-probabilities at sampling time under the training policy, and those reported by the sampler, [U, L] each, and the
# mask, [U, L] -> weights >= 0, [U, L]
ImportanceWeights = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TruncatedWeights:
    r"""Weights of single tokens, bounded above (Yao et al. 2025, "TIS").

        w = min(pi / pi_sampler, max_weight)

    Args:
        max_weight: > 0.
    """

    max_weight: float = 2.0

    def __post_init__(self) -> None:
        _check_positive("max_weight", self.max_weight)

    def __call__(self, log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor) -> Tensor:
        return truncated_importance_weights(log_probs, sampler_log_probs, max_weight=self.max_weight)


@dataclass(frozen=True)
class MaskedWeights:
    r"""Weights of single tokens, 0 outside a band (IcePop, Ling team 2025).

        w = r if min_weight <= r <= max_weight else 0,     r = pi / pi_sampler

    Args:
        min_weight: >= 0.
        max_weight: > min_weight.
    """

    min_weight: float = 0.5
    max_weight: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_weight < self.max_weight:
            raise ValueError(
                f"min_weight must be >= 0 and below max_weight, got {self.min_weight} and {self.max_weight}"
            )

    def __call__(self, log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor) -> Tensor:
        ratio = (log_probs - sampler_log_probs).detach().exp()
        return torch.where((ratio >= self.min_weight) & (ratio <= self.max_weight), ratio, 0.0)


@dataclass(frozen=True)
class SequenceWeights:
    r"""One weight for all tokens of a sequence: unbiased where the bound is not reached (Liu, Li et al. 2025).

        w = min( prod_t pi(y_t) / pi_sampler(y_t), max_weight ),  or 0 above it (drop)

    Args:
        max_weight: > 0.
        drop: leave out sequences above `max_weight`.
    """

    max_weight: float = 2.0
    drop: bool = False

    def __post_init__(self) -> None:
        _check_positive("max_weight", self.max_weight)

    def __call__(self, log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor) -> Tensor:
        log_ratio = (log_probs - sampler_log_probs).detach().masked_fill(~mask, 0.0)
        ratio = log_ratio.sum(1, keepdim=True).exp()
        bounded = torch.where(ratio > self.max_weight, 0.0 if self.drop else self.max_weight, ratio)
        return bounded.expand_as(log_probs)


class SamplerCorrected:
    """Any policy loss with importance weights for the sampler's mismatch.

        L(w A) in place of L(A),     w by `weights`, without gradient

    Args:
        loss: any `lit_rft.rollouts.PolicyLoss`; default `MixedPolicyLoss`.
        weights: any `ImportanceWeights`; default `TruncatedWeights`.
    """

    def __init__(self, loss: Callable[..., Any] | None = None, weights: Callable[..., Any] | None = None) -> None:
        self.loss = loss if loss is not None else MixedPolicyLoss()
        self.weights = weights if weights is not None else TruncatedWeights()

    @property
    def needs(self) -> LossNeeds:
        return LossNeeds(sampler_log_probs=True) | needs_of(self.loss)

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        if rollouts.sampled_log_probs is None:
            if bool((rollouts.mask & ~rollouts.off_policy[:, None]).any()):
                raise ValueError(
                    "SamplerCorrected needs the log-probabilities that the sampler reported, and these rollouts have "
                    "none: PPO does not keep them; use it with GRPO's stages"
                )
            return self.loss(log_probs, rollouts, normalizer=normalizer)
        old = log_probs.detach() if rollouts.old_log_probs is None else rollouts.old_log_probs
        sampled = rollouts.mask & ~rollouts.off_policy[:, None]
        weights = torch.where(sampled, self.weights(old, rollouts.sampled_log_probs, sampled), 1.0)
        corrected = dataclasses.replace(rollouts, advantages=rollouts.token_advantages * weights)
        loss, sums = self.loss(log_probs, corrected, normalizer=normalizer)
        number = sampled.sum()
        kept = torch.where(sampled, weights, 0.0)
        return loss, {
            **sums,
            "importance_weight": mean_parts(kept.sum(), number),
            "importance_dropped": mean_parts((sampled & (weights == 0)).sum(), number),
        }


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
