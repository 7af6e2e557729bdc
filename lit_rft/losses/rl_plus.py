"""RL-PLUS: multiple importance sampling and exploration of a trace's tokens (Dong et al. 2025, arXiv 2508.00222)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rft.objectives import Sums, clipped_surrogate, mean_parts
from lit_rft.objectives.checks import check_non_negative
from lit_rft.rollouts import LossNeeds, Normalizer, RolloutBatch


def multiple_importance_losses(
    log_probs: Tensor, advantages: Tensor, *, behaviour_log_probs: Tensor | None = None, exploration: float = 0.5
) -> Tensor:
    r"""Compute RL-PLUS's loss of each token of a trace (eq. 5-8).

        l = -r A^c,     r = 2 pi_theta / (pi_omega + pi_old),     A^c = A sg[ 1 - pi_theta ]^exploration

    pi_omega is pi_phi where it is known, else its estimate (pi_old + 1) / 2. pi_old of a trace is the current policy,
    without gradient: exact in the first optimiser step on a rollout.

    Args:
        log_probs: log pi_theta, [B, T]; gradients flow here only.
        advantages: A, [B, T].
        behaviour_log_probs: log pi_phi, [B, T]; NaN at tokens where it is unknown; None if all are.
        exploration: >= 0; 0 for A^c = A.

    Returns:
        [B, T].
    """
    check_non_negative(exploration=exploration)
    probs = log_probs.exp()
    old = probs.detach()
    omega = (old + 1) / 2
    if behaviour_log_probs is not None:
        omega = torch.where(behaviour_log_probs.isnan(), omega, behaviour_log_probs.detach().exp())
    weight = (1 - old).clamp_min(0.0) ** exploration
    return -2 * probs / (omega + old) * advantages.detach() * weight


@dataclass(frozen=True)
class RLPlus:
    """PPO's clipped loss of completions, and `multiple_importance_losses` of traces; the mean over tokens.

    Needs `objective.traces_per_group`: 1 or more.

    Args:
        exploration: see `multiple_importance_losses`.
        clip_low: of the on-policy ratio, downwards; null for none.
        clip_high: upwards; null for none.

    Raises:
        ValueError: a setting is negative.
    """

    exploration: float = 0.5
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2

    def __post_init__(self) -> None:
        check_non_negative(**{
            "loss.exploration": self.exploration, "loss.clip_low": self.clip_low or 0.0,
            "loss.clip_high": self.clip_high or 0.0,
        })  # fmt: skip

    @property
    def needs(self) -> LossNeeds:
        return LossNeeds(group_traces=True)

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        mask, off = rollouts.mask, rollouts.off_policy[:, None]
        kept = log_probs.masked_fill(~mask, 0.0)
        old = kept.detach() if rollouts.old_log_probs is None else rollouts.old_log_probs
        per_token = rollouts.token_advantages.to(kept.dtype)
        on = mask & ~off
        sampled, clipped = clipped_surrogate(
            kept.masked_fill(~on, 0.0), old.masked_fill(~on, 0.0), per_token, clip_low=self.clip_low,
            clip_high=self.clip_high,
        )  # fmt: skip
        traces = multiple_importance_losses(
            kept, per_token, behaviour_log_probs=rollouts.behaviour_log_probs, exploration=self.exploration
        )
        losses = torch.where(off, traces, sampled).masked_fill(~mask, 0.0)
        trace_probs = kept.detach().exp().masked_fill(~(mask & off), 0.0)
        return losses.sum() / normalizer.tokens, {
            "clip_fraction": mean_parts((clipped & on).sum(), on.sum()),
            "trace_prob_mean": mean_parts(trace_probs.sum(), (mask & off).sum()),
        }
