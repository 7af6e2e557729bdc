"""What GRPO compares: completions of a prompt, or episodes of a task, and what they earned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_rft.transcripts import Transcript, TranscriptBatch


@dataclass
class Rollout:
    """A completion, or an episode. What is kept token by token is a list for each transcript, over all its utterances.

    Args:
        transcripts: a prompt with its completion; an episode's conversations.
        text: what it says.
        group: number of its prompt or task.
        off_policy: whether it is a trace, or an expert's episode.
        finished: whether it came to its end.
        reward: what it earned.
        sampled_log_probs: as the sampler reported them; none for off-policy members.
        behaviour_log_probs: log pi_phi of an off-policy member's tokens, where it is known.
        advantage: by comparison with its group.
        old_log_probs: before the first update; none while that is still to come.
        counts_in_baseline: whether it is compared with the others of its group; else a trace that is only imitated.
    """

    transcripts: list[Transcript]
    text: str
    group: int
    off_policy: bool
    finished: bool
    reward: float = 0.0
    sampled_log_probs: list[list[float]] = field(default_factory=list)
    behaviour_log_probs: list[list[float]] = field(default_factory=list)
    advantage: float = 0.0
    old_log_probs: list[Tensor] = field(default_factory=list)
    counts_in_baseline: bool = True

    @property
    def length(self) -> int:
        """Tokens of its utterances."""
        return sum(
            end + 1 - start
            for transcript in self.transcripts
            for start, end in zip(transcript.utterance_starts, transcript.utterance_ends, strict=True)
        )


class RolloutBatch:
    """A micro-batch with the members that its transcripts belong to."""

    def __init__(self, batch: TranscriptBatch, members: Iterable[Rollout]) -> None:
        self.batch = batch
        places = {id(t): (one, k) for one in members for k, t in enumerate(one.transcripts)}
        self._places = [places[id(transcript)] for transcript in batch.transcripts]

    def each(self, name: str, dtype: torch.dtype) -> Tensor:
        """A plain attribute of the member that made each decision, [U]."""
        values = torch.tensor([getattr(one, name) for one, _ in self._places], dtype=dtype)
        return values.to(self.batch.level.device)[self.batch.transcript_index]

    def tokens(self, name: str, like: Tensor, missing: float) -> Tensor:
        """A token-wise attribute, [U, L], where members have it."""
        rows = [
            torch.as_tensor(values[k], dtype=like.dtype, device=like.device) if values else None
            for one, k in self._places
            for values in [getattr(one, name)]
        ]
        counts = self.token_counts()
        flat = [like.new_full((n,), missing) if row is None else row for row, n in zip(rows, counts, strict=True)]
        return torch.full_like(like, missing).masked_scatter(self.batch.utterance_mask, torch.cat(flat))

    def keep(self, name: str, values: Tensor) -> None:
        """Set a token-wise attribute from [U, L]."""
        parts = values[self.batch.utterance_mask].split(self.token_counts())
        for (one, k), part in zip(self._places, parts, strict=True):
            found = getattr(one, name) or [part[:0]] * len(one.transcripts)
            found[k] = part.clone()
            setattr(one, name, found)

    def token_counts(self) -> list[int]:
        """Utterance tokens of each transcript."""
        counts = torch.zeros(len(self._places), dtype=torch.long, device=self.batch.level.device)
        counts.index_add_(0, self.batch.transcript_index, self.batch.utterance_mask.sum(1))
        return counts.tolist()


def group_statistics(members: Sequence[Rollout]) -> dict[str, float]:
    """Sums over the members and groups of this process, to be added up over processes."""
    members = [one for one in members if one.counts_in_baseline]
    own = [one for one in members if not one.off_policy]
    groups: dict[int, list[float]] = {}
    for one in members:
        groups.setdefault(one.group, []).append(one.reward)
    rewards = [one.reward for one in own]
    return {
        "completions": float(len(own)),
        "reward": sum(rewards),
        "reward_squared": sum(reward * reward for reward in rewards),
        "trace_reward": sum(one.reward for one in members if one.off_policy),
        "traces": float(len(members) - len(own)),
        "groups": float(len(groups)),
        "without_signal": float(sum(len(set(values)) == 1 for values in groups.values())),
        "length": float(sum(one.length for one in own)),
        "truncated": float(sum(not one.finished for one in own)),
        "nll": -sum(value for one in own for row in one.sampled_log_probs for value in row),
    }


def summarize_groups(sums: dict[str, Any]) -> dict[str, Tensor]:
    """Means and shares out of `group_statistics`, added up."""
    report: dict[str, Tensor] = {}
    if sums["completions"] > 0:
        n = sums["completions"]
        mean = sums["reward"] / n
        report = {
            "reward": mean,
            "reward_std": (sums["reward_squared"] / n - mean**2).clamp_min(0).sqrt(),
            "completion_length": sums["length"] / n,
            "truncated_fraction": sums["truncated"] / n,
            # what was sampled estimates the entropy without bias, and costs nothing
            "sampled_entropy": sums["nll"] / sums["length"].clamp_min(1),
        }
    if sums["groups"] > 0:
        report["no_signal_fraction"] = sums["without_signal"] / sums["groups"]
    if sums["traces"] > 0:
        report["trace_reward"] = sums["trace_reward"] / sums["traces"]
    return report
