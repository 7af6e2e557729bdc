"""Inputs of losses that have no term for traces."""

from typing import NamedTuple

from torch import Tensor

from lit_rft.rollouts import RolloutBatch


class OnPolicyTokens(NamedTuple):
    """The values of a loss without off-policy term, all [U, L]; 0 outside `mask`."""

    log_probs: Tensor  # log pi_theta, with gradients
    old_log_probs: Tensor  # log pi_old, of the sampling policy, detached
    advantages: Tensor  # detached
    mask: Tensor  # bool


def on_policy_tokens(name: str, log_probs: Tensor, rollouts: RolloutBatch) -> OnPolicyTokens:
    """Gather the inputs of an on-policy loss, and reject traces.

    Args:
        name: the loss, for the error.
        log_probs: log pi_theta, [U, L]; gradients flow here only.
        rollouts: advantages, [U] or [U, L], masks and old log-probabilities of the same tokens.

    Raises:
        ValueError: the batch holds traces, which the loss would treat as sampled by the policy.
    """
    mask = rollouts.mask
    if bool((rollouts.off_policy & mask.any(1)).any()):
        raise ValueError(
            f"{name} has no term for traces, and this batch has off-policy rows: set objective.traces_per_group to 0, "
            "or use MixedPolicyLoss"
        )
    kept = log_probs.masked_fill(~mask, 0.0)
    old = kept if rollouts.old_log_probs is None else rollouts.old_log_probs.masked_fill(~mask, 0.0)
    return OnPolicyTokens(kept, old.detach(), rollouts.token_advantages.detach().to(kept.dtype), mask)
