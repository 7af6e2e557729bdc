"""The likelihood term of losses that imitate traces outside the groups."""

from torch import Tensor

from lit_rft.rollouts import Normalizer, RolloutBatch


def imitation_loss(
    name: str, log_probs: Tensor, rollouts: RolloutBatch, normalizer: Normalizer, *, weights: Tensor | None = None
) -> Tensor:
    r"""Compute a weighted negative log-likelihood of the imitated traces.

        L = -1/Z sum_t w_t log pi_theta(y_t),     Z the number of their tokens in the optimiser step

    Args:
        name: the loss, for the error.
        log_probs: log pi_theta, [U, L]; gradients flow here only.
        rollouts: with the mask of imitated tokens.
        normalizer: its `imitated` is Z.
        weights: w, [U, L] or [U, 1]; default 1.

    Returns:
        Scalar.

    Raises:
        ValueError: the batch was made without imitated traces (PPO).
    """
    if rollouts.imitated is None:
        raise ValueError(f"{name} imitates traces, which this stage does not have: use it with GRPO's stages")
    values = log_probs if weights is None else weights.detach() * log_probs
    return -values.masked_fill(~rollouts.imitated, 0.0).sum() / normalizer.imitated
