"""Micro-batches of rollouts."""

from collections.abc import Sequence

from lit_rft.models.accel import can_share_prompts, longest_shared_row
from lit_rft.models.sharding import unsharded
from lit_rft.rollouts.policy import Policy
from lit_rft.rollouts.rollout import Rollout
from lit_rft.stages.core.settings import BatchingSettings
from lit_rft.transcripts import Transcript, TranscriptBatch, count_utterances, shared_step_batch, step_batch


class RolloutSplitter:
    """Splits the transcripts of rollouts into micro-batches.

    Args:
        batching: maximum tokens, and packing.
        share_prompts: compute a prompt once for all completions of its group, where the model supports it; becomes
            False where it does not.

    Raises:
        ValueError: For packing together with shared prompts.
    """

    def __init__(self, batching: BatchingSettings, share_prompts: bool = False) -> None:
        if share_prompts and batching.packing:
            raise ValueError(
                "batching.packing has no effect with share_prompts, which puts the completions of a prompt into one "
                "row: leave packing out, or set share_prompts to false"
            )
        self.batching, self.share_prompts = batching, share_prompts
        self._checked = False

    def check_sharing(self, policy: Policy) -> None:
        """Try, once, whether the model can share prompts; in a training step, with the precision of training."""
        if self.share_prompts and not self._checked:
            with unsharded(policy.model):
                self.share_prompts = can_share_prompts(policy.model)
            self._checked = True

    def __call__(self, policy: Policy, rollouts: Sequence[Rollout]) -> list[TranscriptBatch]:
        """Return micro-batches on the policy's device."""
        transcripts = [transcript for rollout in rollouts for transcript in rollout.transcripts]
        counts, max_tokens = count_utterances(transcripts), self.batching.micro_batch_tokens
        if not self.share_prompts:
            packing = self.batching.packing
            batch = step_batch(transcripts, counts, micro_batch_tokens=max_tokens, pad_id=0, packing=packing)
            return batch.to(policy.device).micro_batches
        groups: dict[tuple[int, str], list[Transcript]] = {}
        for rollout in rollouts:  # by their prompts too: traces of other prompts may have joined a group
            groups.setdefault((rollout.group, rollout.id), []).extend(rollout.transcripts)
        row_tokens = longest_shared_row(policy.model)
        batch = shared_step_batch(
            list(groups.values()), counts, micro_batch_tokens=max_tokens, pad_id=0, row_tokens=row_tokens
        )
        return batch.to(policy.device).micro_batches
