"""Rollouts: completions of a prompt, or episodes of a task, with the values for training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_rft.agents import Agent, Decision, transcript_decisions
from lit_rft.episodes import Episode
from lit_rft.transcripts import Transcript, TranscriptBatch


@dataclass
class Rollout:
    """A completion, or an episode. Token-wise values are one list per transcript, over all its utterances.

    Args:
        transcripts: a prompt with its completion; the conversations of an episode.
        text: its text.
        group: number of its prompt or task.
        off_policy: true for a trace or an expert episode.
        finished: whether it finished (EOS or stop).
        reward: its reward.
        sampled_log_probs: log-probabilities reported by the sampler; none for off-policy rollouts.
        behaviour_log_probs: log pi_phi of the tokens of an off-policy rollout, if known.
        advantage: of all its tokens; their mean if they have different ones.
        token_advantages: of each token; empty if all have `advantage`.
        task: benchmark of its problem; empty for episodes, whose record has the task.
        ground_truth: reference answer of its problem.
        reward_parts: rewards before they are weighted and summed, by name; empty without parts.
        old_log_probs: log-probabilities before the first update; none until they are computed.
        group_reward: mean reward of the sampled members of its group.
        counts_in_baseline: whether it is compared with the others of its group; false for a trace that is only
            imitated.
        episode: record of an episode; None for a completion.
        agent: of the episode.
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
    group_reward: float = 0.0
    episode: Episode | None = None
    agent: Agent | None = None
    token_advantages: list[list[float]] = field(default_factory=list)
    task: str = ""
    ground_truth: str = ""
    reward_parts: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Id of its episode or problem."""
        return self.episode.id if self.episode is not None else self.transcripts[0].episode_id

    @property
    def has_finite_rewards(self) -> bool:
        """True if its reward, and those of an episode's steps, are finite."""
        steps = self.episode.steps if self.episode is not None else []
        return all(math.isfinite(reward) for reward in (self.reward, *(step.reward for step in steps)))

    @property
    def length(self) -> int:
        """Number of tokens of its utterances."""
        return sum(sum(utterance_lengths(transcript)) for transcript in self.transcripts)

    @property
    def decisions(self) -> list[list[Decision]]:
        """The decisions of each transcript of an episode, with states and rewards; empty for a completion."""
        if self.episode is None or self.agent is None:
            return []
        return [transcript_decisions(transcript, self.episode, self.agent) for transcript in self.transcripts]

    @property
    def has_advantage(self) -> bool:
        """True if any of its tokens has an advantage other than 0."""
        return self.advantage != 0 or any(value != 0 for row in self.token_advantages for value in row)

    def set_advantages(self, values: float | Sequence[Sequence[float]]) -> None:
        """Set the advantages of its tokens.

        Args:
            values: of all of them; or for each transcript one per decision, or one per token of its utterances.

        Raises:
            ValueError: If the numbers of transcripts, decisions or tokens differ.
        """
        if isinstance(values, (int, float)):
            self.advantage, self.token_advantages = float(values), []
            return
        if len(values) != len(self.transcripts):
            raise ValueError(f"expected advantages of {len(self.transcripts)} transcripts, got {len(values)}")
        pairs = zip(self.transcripts, values, strict=True)
        self.token_advantages = [_advantages_of_tokens(transcript, row) for transcript, row in pairs]
        self.advantage = sum(map(sum, self.token_advantages)) / max(self.length, 1)


def utterance_lengths(transcript: Transcript) -> list[int]:
    """Return the number of tokens of each utterance."""
    spans = zip(transcript.utterance_starts, transcript.utterance_ends, strict=True)
    return [end + 1 - start for start, end in spans]


def _advantages_of_tokens(transcript: Transcript, values: Sequence[float]) -> list[float]:
    lengths = utterance_lengths(transcript)
    if len(values) == sum(lengths):
        return list(values)
    if len(values) == len(lengths):
        return [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
    raise ValueError(
        f"expected an advantage for each of {len(lengths)} decisions or {sum(lengths)} tokens of a transcript, got "
        f"{len(values)}"
    )


@dataclass
class RolloutBatch:
    """A micro-batch of rollouts: one row per utterance (U; a completion is one), one column per token (L)."""

    mask: Tensor  # [U, L] bool, tokens in the policy loss
    off_policy: Tensor  # [U] bool
    advantages: Tensor  # [U]; [U, L] if the tokens of any rollout have different ones
    old_log_probs: Tensor | None = None  # [U, L]; None before the first update, while the policy is the sampling policy
    sampled_log_probs: Tensor | None = None  # [U, L], as reported by the sampler, else 0
    behaviour_log_probs: Tensor | None = None  # [U, L], log pi_phi of traces; NaN where unknown
    imitated: Tensor | None = None  # [U, L] bool, tokens of traces outside the groups, for likelihood terms
    group_reward: Tensor | None = None  # [U], mean reward of the sampled members of the group
    entropy: Tensor | None = None  # [U, L] of the policy, detached; for losses that need it

    @property
    def token_advantages(self) -> Tensor:
        """The advantage of each token, [U, L]."""
        return self.advantages[:, None].expand_as(self.mask) if self.advantages.dim() == 1 else self.advantages

    @classmethod
    def of(cls, batch: TranscriptBatch, rollouts: Sequence[Rollout]) -> "RolloutBatch":
        """Gather the values of the rollouts of a micro-batch's transcripts."""
        places, counts = _places(batch, rollouts), token_counts(batch)
        device, owner = batch.level.device, batch.transcript_index

        def per_utterance(values: list[bool] | list[float]) -> Tensor:
            return torch.tensor(values).to(device)[owner]

        def per_token(values: list[list[float] | Tensor], missing: float) -> Tensor | None:
            return _per_token(batch.utterance_mask, counts, values, missing)

        counted = per_utterance([rollout.counts_in_baseline for rollout, _ in places])
        return cls(
            batch.utterance_mask & counted[:, None],
            per_utterance([rollout.off_policy for rollout, _ in places]),
            _advantages(batch.utterance_mask, counts, places, per_utterance),
            per_token([_of_transcript(rollout.old_log_probs, k) for rollout, k in places], 0.0),
            per_token([_of_transcript(rollout.sampled_log_probs, k) for rollout, k in places], 0.0),
            per_token([_of_transcript(rollout.behaviour_log_probs, k) for rollout, k in places], math.nan),
            batch.utterance_mask & ~counted[:, None],
            per_utterance([rollout.group_reward for rollout, _ in places]),
        )


def _advantages(
    mask: Tensor,
    counts: Sequence[int],
    places: Sequence[tuple[Rollout, int]],
    per_utterance: Callable[[list[float]], Tensor],
) -> Tensor:
    if not any(rollout.token_advantages for rollout, _ in places):
        return per_utterance([rollout.advantage for rollout, _ in places])
    rows = [
        rollout.token_advantages[k] if rollout.token_advantages else [rollout.advantage] * count
        for (rollout, k), count in zip(places, counts, strict=True)
    ]
    return _per_token(mask, counts, rows, 0.0)  # type: ignore[return-value] # an utterance has tokens


def keep_old_log_probs(batch: TranscriptBatch, rollouts: Sequence[Rollout], log_probs: Tensor) -> None:
    """Set `old_log_probs` of rollouts from those of a micro-batch, [U, L]."""
    parts = log_probs[batch.utterance_mask].split(token_counts(batch))
    for (rollout, k), part in zip(_places(batch, rollouts), parts, strict=True):
        rollout.old_log_probs = rollout.old_log_probs or [part[:0]] * len(rollout.transcripts)
        rollout.old_log_probs[k] = part.clone()


def _places(batch: TranscriptBatch, rollouts: Sequence[Rollout]) -> list[tuple[Rollout, int]]:
    """Return the rollout of each transcript of a batch, and the transcript's index in the rollout."""
    places = {id(t): (rollout, k) for rollout in rollouts for k, t in enumerate(rollout.transcripts)}
    return [places[id(transcript)] for transcript in batch.transcripts]


def _of_transcript(values: Sequence[list[float] | Tensor], index: int) -> list[float] | Tensor:
    """Return the token-wise values of one transcript; empty if the rollout has none."""
    return values[index] if values else []


def _per_token(
    mask: Tensor, counts: Sequence[int], values: Sequence[list[float] | Tensor], missing: float
) -> Tensor | None:
    """Arrange the values of each transcript's utterance tokens (`counts` of each) as [U, L]; None without values."""
    if not any(len(row) for row in values):
        return None
    device = mask.device
    flat = [
        torch.as_tensor(row, dtype=torch.float32, device=device) if len(row) else torch.full((n,), missing).to(device)
        for row, n in zip(values, counts, strict=True)
    ]
    grid = torch.full(mask.shape, missing, device=device)
    return grid.masked_scatter(mask, torch.cat(flat))


def token_counts(batch: TranscriptBatch) -> list[int]:
    """Count the utterance tokens of each transcript."""
    counts = torch.zeros(len(batch.transcripts), dtype=torch.long, device=batch.level.device)
    counts.index_add_(0, batch.transcript_index, batch.utterance_mask.sum(1))
    return counts.tolist()
