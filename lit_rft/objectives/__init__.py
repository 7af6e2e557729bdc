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
from lit_rft.objectives.likelihood import (
    LikelihoodLoss,
    expected_utterance_length,
    utterance_likelihood_loss,
    utterance_log_likelihood,
)

__all__ = [
    "AdvantageWeights",
    "ExpectileLoss",
    "LikelihoodLoss",
    "QLoss",
    "advantage_weights",
    "discounted_returns",
    "expected_utterance_length",
    "expectile_value_loss",
    "polyak_update",
    "q_loss",
    "td_target",
    "utterance_likelihood_loss",
    "utterance_log_likelihood",
    "weighted_likelihood_loss",
]
