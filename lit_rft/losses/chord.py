"""CHORD: a decaying mixture of imitation and reinforcement, with token weights (Zhang et al., arXiv 2508.11408)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rft.losses.imitation import imitation_loss
from lit_rft.objectives import Sums
from lit_rft.objectives.checks import check_fraction
from lit_rft.rollouts import LossNeeds, MixedPolicyLoss, Normalizer, RolloutBatch, needs_of


class CHORD:
    r"""A mixture whose imitation term keeps to tokens of medium probability.

        L   = (1 - mu) L_RL + mu L_SFT,     L_SFT = -1/Z sum_t phi_t log pi_theta(y_t)
        phi = sg[ p (1 - p) ], p = pi_theta(y_t)     with token_weights, else 1
        mu  falls from `mu` to `mu_end` along half a cosine in the first decay_steps optimiser steps

    CHORD-mu: token_weights false, mu 0.9 to 0.05; CHORD-phi: token_weights true, mu constant at 0.1 (mu_end null). The
    defaults are both at once: a decaying mu and weighted tokens.
    Needs `objective.imitated_traces`: 1 or more; the paper has no traces in the groups (`traces_per_group: 0`).

    Args:
        mu: weight of imitation at first, in [0, 1].
        mu_end: after the decay; null for `mu`.
        decay_steps: optimiser steps, >= 1.
        token_weights: weight tokens by phi.
        loss: L_RL, any `lit_rft.rollouts.PolicyLoss`; default `MixedPolicyLoss`.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        mu: float = 0.9,
        mu_end: float | None = 0.05,
        decay_steps: int = 200,
        token_weights: bool = True,
        loss: Callable[..., Any] | None = None,
    ) -> None:
        check_fraction(mu=mu, mu_end=mu if mu_end is None else mu_end)
        if decay_steps < 1:
            raise ValueError(f"decay_steps must be >= 1, got {decay_steps}")
        self.mu, self.mu_end, self.decay_steps = mu, mu if mu_end is None else mu_end, decay_steps
        self.token_weights, self.loss = token_weights, loss if loss is not None else MixedPolicyLoss()

    def weight(self, step: int) -> float:
        """Return mu after a number of optimiser steps."""
        share = (1 + math.cos(math.pi * min(step / self.decay_steps, 1.0))) / 2
        return self.mu_end + (self.mu - self.mu_end) * share

    @property
    def needs(self) -> LossNeeds:
        return LossNeeds(imitated_traces=True) | needs_of(self.loss)

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        loss, sums = self.loss(log_probs, rollouts, normalizer=normalizer)
        probs = log_probs.detach().exp()
        weights = probs * (1 - probs) if self.token_weights else torch.ones_like(probs)
        imitation = imitation_loss("CHORD", log_probs, rollouts, normalizer, weights=weights)
        mu = self.weight(normalizer.step)
        return (1 - mu) * loss + mu * imitation, {**sums, "imitation_loss": imitation.detach()}
