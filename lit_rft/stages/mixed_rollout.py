"""A rollout of LUFFY: completions of some prompts, the policy's own and others', and what they earned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rft.transcripts import Transcript, TranscriptBatch


@dataclass
class Completion:
    """One completion.

    Args:
        transcript: prompt and completion, as one decision.
        text: what it says.
        group: number of its prompt.
        off_policy: whether it is a trace.
        finished: whether it came to its end.
        reward: what it earned.
        sampled_log_probs: of its tokens, as the sampler reported them; empty for a trace.
        advantage: by comparison with its group.
        old_log_probs: of its tokens before the first update; None while that is still to come.
        in_group: whether it is compared with the others of its prompt; else a trace that is only imitated.
    """

    transcript: Transcript
    text: str
    group: int
    off_policy: bool
    finished: bool
    reward: float = 0.0
    sampled_log_probs: Sequence[float] = ()
    advantage: float = 0.0
    old_log_probs: Tensor | None = None
    in_group: bool = True

    @property
    def length(self) -> int:
        """Tokens of the completion."""
        return len(self.transcript.utterance_ids(0))


def padded_rows(rows: Iterable[Sequence[float] | Tensor | None], like: Tensor) -> Tensor:
    """Sequences of numbers as rows [U, L] of the shape and kind of `like`, 0 where they end or are missing."""
    out = torch.zeros_like(like)
    for row, values in zip(out, rows, strict=True):
        if values is not None and len(values):
            row[: len(values)] = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    return out


def of_batch(completions: Sequence[Completion], batch: TranscriptBatch) -> list[Completion]:
    """The completions of a micro-batch, in the order of its decisions."""
    by_transcript = {id(one.transcript): one for one in completions}
    return [by_transcript[id(transcript)] for transcript in batch.transcripts]


def group_statistics(completions: Sequence[Completion]) -> dict[str, float]:
    """Sums over the completions and groups of this process, to be added up over processes."""
    completions = [one for one in completions if one.in_group]
    own = [one for one in completions if not one.off_policy]
    groups: dict[int, list[float]] = {}
    for one in completions:
        groups.setdefault(one.group, []).append(one.reward)
    rewards = [one.reward for one in own]
    return {
        "completions": float(len(own)),
        "reward": sum(rewards),
        "reward_squared": sum(reward * reward for reward in rewards),
        "trace_reward": sum(one.reward for one in completions if one.off_policy),
        "traces": float(len(completions) - len(own)),
        "groups": float(len(groups)),
        "without_signal": float(sum(len(set(values)) == 1 for values in groups.values())),
        "length": float(sum(one.length for one in own)),
        "truncated": float(sum(not one.finished for one in own)),
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
        }
    if sums["groups"] > 0:
        report["no_signal_fraction"] = sums["without_signal"] / sums["groups"]
    if sums["traces"] > 0:
        report["trace_reward"] = sums["trace_reward"] / sums["traces"]
    return report
