r"""Preferences between two trajectories of one task: DPO (arXiv 2305.18290), and ETO's over episodes (2403.02502)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_rft.objectives.checks import check_dims, check_same_shape


class PreferenceLoss(NamedTuple):
    loss: Tensor  # scalar
    chosen_reward: Tensor  # detached, mean of beta log(pi / pi_ref) over the chosen
    rejected_reward: Tensor  # detached, of the rejected
    accuracy: Tensor  # detached, share of pairs whose chosen reward is the higher one


def preference_loss(
    chosen_log_ratios: Tensor,
    rejected_log_ratios: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
) -> PreferenceLoss:
    r"""Increase the chosen trajectory's likelihood over the rejected one's, relative to a reference.

        L = -1/P sum_p [ (1 - e) log sigmoid(beta h_p) + e log sigmoid(-beta h_p) ]
        h = log(pi / pi_ref)(chosen) - log(pi / pi_ref)(rejected)

    Each log-ratio is a sum over all tokens of the policy in the trajectory, without observations.

    Args:
        chosen_log_ratios: log pi(chosen) - log pi_ref(chosen), [P]; gradients flow here and ...
        rejected_log_ratios: of the rejected, [P]; ... here.
        beta: strength of the penalty on deviations from the reference, > 0.
        label_smoothing: e in [0, 0.5), the assumed share of wrong labels (conservative DPO).
        normalizer: P over all micro-batches and devices; default P of this call.

    Raises:
        ValueError: the message names the argument whose shape or range is wrong.
    """
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    check_dims(1, chosen_log_ratios=chosen_log_ratios)
    check_same_shape(chosen_log_ratios=chosen_log_ratios, rejected_log_ratios=rejected_log_ratios)
    margin = beta * (chosen_log_ratios - rejected_log_ratios)
    losses = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    count = max(margin.numel(), 1)
    return PreferenceLoss(
        losses.sum() / (count if normalizer is None else normalizer),
        beta * chosen_log_ratios.detach().sum() / count,
        beta * rejected_log_ratios.detach().sum() / count,
        (margin.detach() > 0).float().sum() / count,
    )


def trajectory_log_probs(token_log_probs: Tensor, trajectory: Tensor, mask: Tensor, *, number: int) -> Tensor:
    """Sum log-probabilities over the tokens of each trajectory.

    Args:
        token_log_probs: of utterances' tokens, [U, L]; values outside the mask are ignored, NaN included.
        trajectory: number of the trajectory that each utterance belongs to, in [0, number), [U].
        mask: true on the utterances' tokens, [U, L].
        number: of trajectories.

    Returns:
        [number]; 0 for one without utterances.

    Raises:
        ValueError: the message names the argument whose shape is wrong.
    """
    check_dims(2, token_log_probs=token_log_probs)
    check_same_shape(token_log_probs=token_log_probs, mask=mask)
    check_same_shape(first_column=token_log_probs[:, 0], trajectory=trajectory)
    rows = torch.where(mask.bool(), token_log_probs, 0.0).sum(1)
    return rows.new_zeros(number).index_add(0, trajectory, rows)
