"""Policy losses over rollouts. A stage accepts any function or object with this signature by `class_path`."""

import functools
from dataclasses import astuple, dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_rft.objectives import Sums, mean_parts, mixed_policy_loss, truncated_importance_weights
from lit_rft.objectives.checks import check_non_negative
from lit_rft.rollouts.rollout import RolloutBatch


class Normalizer(NamedTuple):
    """Normalisers of a loss: counts over all micro-batches and processes of an optimiser step."""

    tokens: Tensor  # tokens of the rollouts in the policy loss, >= 1
    rollouts: Tensor  # their number, >= 1
    max_length: int  # maximum tokens per rollout
    imitated: Tensor | float = 1.0  # tokens of the imitated traces, >= 1
    step: int = 0  # optimiser steps of the policy so far


class PolicyLoss(Protocol):
    """Loss of a micro-batch of rollouts. Losses and diagnostics must be additive over micro-batches.

    A loss that needs more than log-probabilities, advantages and masks has an attribute `needs` (`DeclaresNeeds`).
    """

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        """Compute a micro-batch's share of the loss.

        Args:
            log_probs: log pi_theta of the tokens, [U, L]; 0 in padding.
            rollouts: advantages, masks and other log-probabilities of the same tokens.
            normalizer: counts to divide by.

        Returns:
            The loss, scalar, and diagnostics (see `lit_rft.objectives.Sums`).
        """
        ...


@dataclass(frozen=True)
class LossNeeds:
    """Inputs of a policy loss that only some stages, or some of their settings, provide.

    Args:
        entropy: `RolloutBatch.entropy`.
        sampler_log_probs: `RolloutBatch.sampled_log_probs`, of the distribution before top-k and top-p.
        imitated_traces: traces outside the groups (`RolloutBatch.imitated`).
        group_traces: traces in the groups (`RolloutBatch.off_policy`).
        no_group_traces: groups without traces, for which the loss has no term.
    """

    entropy: bool = False
    sampler_log_probs: bool = False
    imitated_traces: bool = False
    group_traces: bool = False
    no_group_traces: bool = False

    def __or__(self, other: "LossNeeds") -> "LossNeeds":
        """Return the needs of a loss that computes both terms."""
        return LossNeeds(*(a or b for a, b in zip(astuple(self), astuple(other), strict=True)))


@runtime_checkable
class DeclaresNeeds(Protocol):
    """A policy loss with needs. A loss around another one adds those of the inner loss: `needs_of(self.loss)`."""

    @property
    def needs(self) -> LossNeeds:
        """Inputs that the stage must provide."""
        ...


def needs_of(loss: Any) -> LossNeeds:
    """Return the needs of a policy loss; a plain function has none."""
    return loss.needs if isinstance(loss, DeclaresNeeds) else LossNeeds()


def loss_of(loss: Any, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
    """Call a policy loss, and check the form of what it returns.

    Raises:
        TypeError: It returns something else than a scalar and diagnostics.
    """
    result = loss(log_probs, rollouts, normalizer=normalizer)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor) and result[0].dim() == 0:
        value, sums = result
        return value, sums
    parts = result if isinstance(result, tuple) else (result,)
    given = ", ".join(f"tensor {list(p.shape)}" if isinstance(p, Tensor) else type(p).__name__ for p in parts)
    raise TypeError(f"{name_of(loss)} must return a scalar tensor and a dictionary of diagnostics, got {given}")


def name_of(loss: Any) -> str:
    """Return the name of a loss for messages."""
    loss = loss.func if isinstance(loss, functools.partial) else loss
    name: str = getattr(loss, "__name__", type(loss).__name__)
    return name


@dataclass(frozen=True)
class MixedPolicyLoss:
    """LUFFY's loss (see `lit_rft.objectives.mixed_policy_loss`); without traces it is GRPO's.

    Args:
        policy_shaping: gamma of f(x) = x / (x + gamma) on the off-policy term, > 0; null for the plain ratio.
        clip_low: of the on-policy ratio, downwards, >= 0; null for none.
        clip_high: upwards, >= 0; null for none.
        normalizer: divide the sum over tokens by their number (tokens), or by the maximum length of a rollout
            (max_length, the release).
        importance_cap: upper bound of the weights that correct for sampling in another precision or engine; null for no
            correction.
    """

    policy_shaping: float | None = 0.1
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    normalizer: Literal["tokens", "max_length"] = "tokens"
    importance_cap: float | None = None

    def __post_init__(self) -> None:
        check_non_negative(**{"loss.clip_low": self.clip_low or 0.0, "loss.clip_high": self.clip_high or 0.0})
        for name in ("policy_shaping", "importance_cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"loss.{name} must be > 0 or null, got {value}")
        if self.normalizer not in ("tokens", "max_length"):
            raise ValueError(f"loss.normalizer must be tokens or max_length, got {self.normalizer!r}")

    @property
    def needs(self) -> LossNeeds:
        return LossNeeds(sampler_log_probs=self.importance_cap is not None)

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        old = log_probs.detach() if rollouts.old_log_probs is None else rollouts.old_log_probs
        terms = mixed_policy_loss(
            log_probs,
            rollouts.advantages,
            rollouts.mask,
            rollouts.off_policy,
            old_log_probs=old,
            behaviour_log_probs=rollouts.behaviour_log_probs,
            policy_shaping=self.policy_shaping,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            token_weights=self._importance_weights(old, rollouts),
            normalizer=normalizer.tokens if self.normalizer == "tokens" else normalizer.max_length,
        )
        on = (rollouts.mask & ~rollouts.off_policy[:, None]).sum()
        off = (rollouts.mask & rollouts.off_policy[:, None]).sum()
        return terms.loss, {
            "on_policy_loss": mean_parts(terms.on_policy_loss * on, on),
            "off_policy_loss": mean_parts(terms.off_policy_loss * off, off),
            "trace_prob_mean": mean_parts(terms.trace_prob_mean * off, off),
            "clip_fraction": mean_parts(terms.clip_fraction * on, on),
        }

    def _importance_weights(self, old: Tensor, rollouts: RolloutBatch) -> Tensor | None:
        if self.importance_cap is None or rollouts.sampled_log_probs is None:
            return None
        weights = truncated_importance_weights(old, rollouts.sampled_log_probs, max_weight=self.importance_cap)
        return torch.where(rollouts.off_policy[:, None], torch.ones_like(weights), weights)
