"""The objectives: pure functions on tensors, one equation each."""

from lit_rft.objectives.likelihood import (
    LikelihoodLoss,
    expected_utterance_length,
    utterance_likelihood_loss,
    utterance_log_likelihood,
)

__all__ = [
    "LikelihoodLoss",
    "expected_utterance_length",
    "utterance_likelihood_loss",
    "utterance_log_likelihood",
]
