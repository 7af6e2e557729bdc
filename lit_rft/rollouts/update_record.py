"""Token-wise values of an update, by transcript: what the policy loss has made of each token."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rft.rollouts.rollout import RolloutBatch, token_counts
from lit_rft.transcripts import TranscriptBatch


class TokenValues(NamedTuple):
    """Values of a transcript's utterance tokens, [N] each, detached."""

    log_probs: Tensor  # in the update
    advantages: Tensor
    clipped: Tensor  # bool: an advantage, but no gradient
    old_log_probs: Tensor | None
    entropy: Tensor | None


class UpdateRecord:
    """Collects the token-wise values of a batch's updates; those of a later update replace earlier ones.

    `GroupUpdate` and `PPOUpdate` fill the record in their attribute `record`, if there is one.
    """

    def __init__(self) -> None:
        self._values: dict[int, TokenValues] = {}  # by `id()` of the transcript

    def clear(self) -> None:
        """Forget the values, before the transcripts of the next batch."""
        self._values = {}

    def of(self, transcript: object) -> TokenValues | None:
        """Return the values of a transcript; None if it took part in no update."""
        return self._values.get(id(transcript))

    def add(self, micro: TranscriptBatch, log_probs: Tensor, batch: RolloutBatch, policy_loss: Tensor) -> None:
        """Record a micro-batch.

        Args:
            micro: its transcripts.
            log_probs: of the policy, [U, L], with their graph.
            batch: its rollouts' values.
            policy_loss: computed from them; its gradient shows the clipped tokens, for any loss.
        """
        weight = torch.zeros_like(log_probs)
        if policy_loss.requires_grad and log_probs.requires_grad:
            (gradient,) = torch.autograd.grad(policy_loss, log_probs, retain_graph=True, allow_unused=True)
            weight = weight if gradient is None else gradient
        advantages = batch.token_advantages.to(log_probs.dtype)
        grids = [log_probs.detach(), advantages, (weight == 0) & (advantages != 0) & batch.mask]
        optional = [batch.old_log_probs, batch.entropy]
        counts = token_counts(micro)
        rows = [grid[micro.utterance_mask].split(counts) for grid in grids]
        extra = [None if grid is None else grid[micro.utterance_mask].split(counts) for grid in optional]
        for k, transcript in enumerate(micro.transcripts):
            old, entropy = (None if parts is None else parts[k] for parts in extra)
            self._values[id(transcript)] = TokenValues(rows[0][k], rows[1][k], rows[2][k], old, entropy)
