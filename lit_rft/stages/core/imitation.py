"""Initial optimiser steps on traces alone (supervised fine-tuning within a GRPO run)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lit_rft.models.processes import sum_numbers
from lit_rft.objectives import Sums, masked_token_mean
from lit_rft.rollouts import Policy, Rollout
from lit_rft.transcripts import TranscriptBatch

if TYPE_CHECKING:
    from lit_rft.stages.core.group_update import GroupUpdate


def imitation_step(
    update: "GroupUpdate", policy: Policy, traces: Sequence[Rollout]
) -> tuple[list[TranscriptBatch], Callable[[TranscriptBatch], tuple[Tensor, Sums]]]:
    """Return micro-batches and loss of a step of supervised fine-tuning on traces.

    Args:
        update: of the stage.
        policy: to train.
        traces: of this process.

    Raises:
        ValueError: If there are none in any process.
    """
    update.split.check_sharing(policy)
    total = sum_numbers({"tokens": float(sum(t.length for t in traces))}, policy.device)["tokens"]
    if total == 0:
        raise ValueError("objective.sft_steps needs off-policy traces, and this batch has none: check the data")

    def loss(micro: TranscriptBatch) -> tuple[Tensor, Sums]:
        log_probs = update.log_probs(policy, micro).tokens
        return -masked_token_mean(log_probs, micro.utterance_mask, normalizer=total), {}

    return update.split(policy, traces), loss
