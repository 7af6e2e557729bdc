"""HPT: imitation of a prompt's trace while few of its completions are right (Lv et al. 2025, arXiv 2509.04419)."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_rft.losses.imitation import imitation_loss
from lit_rft.objectives import Sums, mean_parts
from lit_rft.objectives.checks import check_number
from lit_rft.rollouts import LossNeeds, MixedPolicyLoss, Normalizer, RolloutBatch, needs_of


class HPT:
    r"""A gate per prompt between reinforcement and imitation (eq. 9-11).

        L = sum_q  [P_q > gate] L_RL(q)  +  [P_q <= gate] L_SFT(q),     P_q the mean reward of q's completions

    Both sums are divided by the tokens of the full step, so that the share of imitated prompts weights L_SFT. Needs
    `objective.imitated_traces`: 1 or more; the paper has no traces in the groups (`traces_per_group: 0`).

    Args:
        gate: highest mean reward at which a prompt's trace is imitated; 0: all completions are wrong (the paper).
        loss: L_RL, any `lit_rft.rollouts.PolicyLoss`; default `MixedPolicyLoss`.

    Raises:
        ValueError: `gate` is not a number.
    """

    def __init__(self, gate: float = 0.0, loss: Callable[..., Any] | None = None) -> None:
        check_number(gate=gate)
        self.gate, self.loss = gate, loss if loss is not None else MixedPolicyLoss()

    @property
    def needs(self) -> LossNeeds:
        return LossNeeds(imitated_traces=True) | needs_of(self.loss)

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        if rollouts.imitated is None or rollouts.group_reward is None:
            raise ValueError("HPT needs rewards of groups and imitated traces: use it with GRPO's stages")
        solved = (rollouts.group_reward > self.gate)[:, None]
        reinforced = dataclasses.replace(rollouts, mask=rollouts.mask & solved)
        loss, sums = self.loss(log_probs, reinforced, normalizer=normalizer)
        imitated = rollouts.imitated & ~solved
        gated = dataclasses.replace(rollouts, imitated=imitated)
        imitation = imitation_loss("HPT", log_probs, gated, normalizer)
        share = mean_parts(imitated.sum(), rollouts.imitated.sum())
        return loss + imitation, {**sums, "imitation_loss": imitation.detach(), "imitated_fraction": share}
