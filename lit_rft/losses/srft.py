"""SRFT: imitation and reinforcement in one stage, weighted by the entropy (Fu et al. 2025, arXiv 2506.19767)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rft.losses.imitation import imitation_loss
from lit_rft.objectives import Sums
from lit_rft.objectives.checks import check_non_negative
from lit_rft.rollouts import LossNeeds, MixedPolicyLoss, Normalizer, RolloutBatch, needs_of


class SRFT:
    r"""Traces are imitated where the policy is certain, and its own successes count more where it is not.

        L = -w_SFT log pi(trace)  +  L_off(trace, A)  +  L_on(completions, A w_RL where A > 0)
        w_SFT = imitation_weight exp(-H),     w_RL = success_weight exp(H)

    H is the mean entropy of the policy over the tokens of each sequence, without gradient; advantages take the place of
    the paper's rewards of +1 and -1. L_off and L_on are the terms of `loss`. Needs `objective: {traces_per_group: 1,
    imitated_traces: 1}`: a trace in the group, and once more for the likelihood.

    Args:
        imitation_weight: >= 0.
        success_weight: >= 0.
        loss: any `lit_rft.rollouts.PolicyLoss` with an off-policy term; default `MixedPolicyLoss`.

    Raises:
        ValueError: a weight is negative.
    """

    def __init__(
        self, imitation_weight: float = 0.5, success_weight: float = 0.1, loss: Callable[..., Any] | None = None
    ) -> None:
        check_non_negative(imitation_weight=imitation_weight, success_weight=success_weight)
        self.imitation_weight, self.success_weight = imitation_weight, success_weight
        self.loss = loss if loss is not None else MixedPolicyLoss()

    @property
    def needs(self) -> LossNeeds:
        return LossNeeds(entropy=True, imitated_traces=True, group_traces=True) | needs_of(self.loss)

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        if rollouts.imitated is None or rollouts.entropy is None:
            raise ValueError("SRFT needs entropies and imitated traces: use it with GRPO's stages")
        tokens = rollouts.mask | rollouts.imitated
        total = rollouts.entropy.masked_fill(~tokens, 0.0).sum(1, keepdim=True)
        entropy = total / tokens.sum(1, keepdim=True).clamp_min(1)  # [U, 1]
        per_token = rollouts.token_advantages
        successes = (per_token > 0) & ~rollouts.off_policy[:, None]
        weighted = torch.where(successes, self.success_weight * entropy.exp(), 1.0) * per_token
        loss, sums = self.loss(log_probs, dataclasses.replace(rollouts, advantages=weighted), normalizer=normalizer)
        weights = self.imitation_weight * (-entropy).exp()
        imitation = imitation_loss("SRFT", log_probs, rollouts, normalizer, weights=weights)
        return loss + imitation, {**sums, "imitation_loss": imitation.detach()}
