"""The objectives: pure functions on tensors, one equation each."""

from lit_rft.objectives.advantage_weighted import (
    AdvantageWeights,
    advantage_weights,
    weighted_likelihood_loss,
)
from lit_rft.objectives.critic import (
    ExpectileLoss,
    QLoss,
    discounted_returns,
    expectile_value_loss,
    polyak_update,
    q_loss,
    td_target,
)
from lit_rft.objectives.diagnostics import Sums, mean_parts
from lit_rft.objectives.gae import GAE, ValueLoss, clipped_value_loss, generalized_advantages, moments, whitened
from lit_rft.objectives.group import group_advantages
from lit_rft.objectives.likelihood import (
    LikelihoodLoss,
    expected_utterance_length,
    utterance_likelihood_loss,
    utterance_log_likelihood,
)
from lit_rft.objectives.mixed_policy import (
    MixedPolicyLoss,
    OnPolicyTerms,
    clipped_surrogate,
    kl_estimate,
    masked_token_mean,
    mixed_policy_loss,
    off_policy_losses,
    shape_policy,
    truncated_importance_weights,
)
from lit_rft.objectives.preference import PreferenceLoss, preference_loss, trajectory_log_probs
from lit_rft.objectives.token_q import conservative_q_loss, next_token_values, perturbed_logits

__all__ = [
    "GAE",
    "AdvantageWeights",
    "ExpectileLoss",
    "LikelihoodLoss",
    "MixedPolicyLoss",
    "OnPolicyTerms",
    "PreferenceLoss",
    "QLoss",
    "Sums",
    "ValueLoss",
    "advantage_weights",
    "clipped_surrogate",
    "clipped_value_loss",
    "conservative_q_loss",
    "discounted_returns",
    "expected_utterance_length",
    "expectile_value_loss",
    "generalized_advantages",
    "group_advantages",
    "kl_estimate",
    "masked_token_mean",
    "mean_parts",
    "mixed_policy_loss",
    "moments",
    "next_token_values",
    "off_policy_losses",
    "perturbed_logits",
    "polyak_update",
    "preference_loss",
    "q_loss",
    "shape_policy",
    "td_target",
    "trajectory_log_probs",
    "truncated_importance_weights",
    "utterance_likelihood_loss",
    "utterance_log_likelihood",
    "weighted_likelihood_loss",
    "whitened",
]
