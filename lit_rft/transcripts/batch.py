"""Transcripts as tensors: padded rows of similar length, or packed sequences."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lit_rft.transcripts.transcript import DecisionOutcome, Transcript


@dataclass
class TranscriptBatch:
    """One micro-batch. Positions are indices into the flattened [B * T] tokens.

    It needs no attention mask: causal attention never sees padding on the right, and restarting `position_ids` separate
    packed transcripts (transformers derives the block mask from them without a mask and a cache).
    """

    input_ids: Tensor  # [B, T]
    position_ids: Tensor  # [B, T]
    utterance_tokens: Tensor  # [U, L] position of each utterance's tokens, 0 in padding
    utterance_mask: Tensor  # [U, L] bool
    preceding: Tensor  # [U, L] position of the token before each of them in its transcript
    level: Tensor  # [U] index into levels
    state_ends: Tensor  # [U] position where V(s) is read
    utterance_ends: Tensor  # [U] position where Q(s, u) is read
    next_state_ends: Tensor  # [U] position where V(s') is read
    rewards: Tensor  # [U] float; this and the next two are 0 if a transcript has no outcomes
    steps: Tensor  # [U] environment steps of each decision
    terminated: Tensor  # [U] bool
    transcript_index: Tensor  # [U] index into transcripts
    transcripts: list[Transcript]
    allowed: Tensor | None = None  # [N, K], for the N tokens of utterances: ids that each was chosen among, else -1
    segments: Tensor | None = None  # [B, T] with shared prompts: 0 in the prompt, then the number of the completion

    @property
    def levels(self) -> list[str]:
        """Names of the levels in this batch, in the order of their codes."""
        return level_names(self.transcripts)

    def at_level(self, level: str) -> Tensor:
        """Return the mask of a level's decisions, [U] bool."""
        names = self.levels
        return self.level == (names.index(level) if level in names else -1)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, without padding."""
        return sum(map(len, self.transcripts))

    @property
    def episode_ids(self) -> list[str]:
        """Episode id of each transcript."""
        return [transcript.episode_id for transcript in self.transcripts]

    def to(self, device: torch.device, non_blocking: bool = False) -> "TranscriptBatch":
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=non_blocking)
        return TranscriptBatch(**moved)


def collate_padded(transcripts: Sequence[Transcript], pad_id: int) -> TranscriptBatch:
    """Collate one transcript per row, padded on the right to the longest."""
    return _collate([[t] for t in transcripts], pad_id)


def collate_packed(transcripts: Sequence[Transcript], pad_id: int, row_tokens: int) -> TranscriptBatch:
    """Collate packed sequences: rows of up to `row_tokens` tokens with several transcripts each."""
    return _collate(pack(transcripts, row_tokens), pad_id)


def pack(transcripts: Sequence[Transcript], row_tokens: int) -> list[list[Transcript]]:
    """Pack transcripts into rows of at most `row_tokens` tokens, first-fit decreasing; longer ones get a row alone."""
    rows: list[list[Transcript]] = []
    sizes: list[int] = []
    for transcript in sorted(transcripts, key=len, reverse=True):
        row = next((i for i, size in enumerate(sizes) if size + len(transcript) <= row_tokens), len(rows))
        if row == len(rows):
            rows.append([])
            sizes.append(0)
        rows[row].append(transcript)
        sizes[row] += len(transcript)
    return rows


def split_by_tokens(transcripts: Sequence[Transcript], max_tokens: int) -> list[list[Transcript]]:
    """Split transcripts into micro-batches of at most `max_tokens` padded tokens; a longer one gets its own.

    Transcripts of similar length come together, the longest first, so that the peak of memory is in the first step.
    """
    groups: list[list[Transcript]] = []
    for transcript in sorted(transcripts, key=len, reverse=True):
        if groups and len(groups[-1][0]) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(transcript)
        else:
            groups.append([transcript])
    return groups


def level_names(transcripts: Sequence[Transcript]) -> list[str]:
    """Return the levels of transcripts, in order of appearance: the index of a level is its code in their batch."""
    return list(dict.fromkeys(transcript.level for transcript in transcripts))


def _collate(rows: list[list[Transcript]], pad_id: int) -> TranscriptBatch:
    if not rows:
        raise ValueError("a batch needs at least one transcript, got none")
    width = max(sum(len(t) for t in row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    position_ids = torch.arange(width).repeat(len(rows), 1)
    decisions: list[tuple[int, ...]] = []
    rewards: list[float] = []
    transcripts: list[Transcript] = []
    levels = level_names([transcript for row in rows for transcript in row])
    for r, row in enumerate(rows):
        column = 0
        for transcript in row:
            end = column + len(transcript)
            input_ids[r, column:end] = torch.tensor(transcript.input_ids)
            position_ids[r, column:end] = torch.arange(len(transcript))
            level = levels.index(transcript.level)
            decisions += _decisions(transcript, level, r * width + column, len(transcripts))
            rewards += [o.reward for o in transcript.outcomes] or [0.0] * transcript.num_decisions
            transcripts.append(transcript)
            column = end
        if len(row) > 1:
            position_ids[r, column:] = torch.arange(width - column)  # padding is a separate sequence
    return with_decisions(input_ids, position_ids, decisions, rewards, transcripts)


def with_decisions(
    input_ids: Tensor,
    position_ids: Tensor,
    decisions: Sequence[tuple[int, ...]],
    rewards: Sequence[float],
    transcripts: list[Transcript],
) -> TranscriptBatch:
    """Make a batch from rows of tokens.

    Args:
        input_ids: [B, T].
        position_ids: [B, T].
        decisions: for each decision the first and last position of its utterance, the last position of the next state,
            its level, its steps, whether it terminated, and the index of its transcript.
        rewards: reward of each decision.
        transcripts: of the batch.
    """
    columns = torch.tensor(decisions, dtype=torch.long).reshape(-1, 7).unbind(-1)
    starts, ends, next_ends, level, steps, terminated, owners = columns
    tokens = starts[:, None] + torch.arange(int((ends - starts).max()) + 1 if decisions else 0)
    mask = tokens <= ends[:, None]
    return TranscriptBatch(
        input_ids, position_ids, tokens * mask, mask, (tokens - 1) * mask, level, starts - 1, ends, next_ends,
        torch.tensor(rewards, dtype=torch.get_default_dtype()),  # whole numbers as well
        steps, terminated.bool(), owners, transcripts, allowed_ids(transcripts),
    )  # fmt: skip


def allowed_ids(transcripts: Sequence[Transcript]) -> Tensor | None:
    """Collect the ids among which each token of the transcripts' utterances was chosen.

    Returns:
        [N, K], -1 in padding and for free tokens; None if all are free.
    """
    if not any(transcript.allowed for transcript in transcripts):
        return None
    rows: list[list[int]] = []
    for transcript in transcripts:
        for k, (start, end) in enumerate(zip(transcript.utterance_starts, transcript.utterance_ends, strict=True)):
            rows += transcript.allowed.get(k) or [[]] * (end + 1 - start)
    width = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])


def _decisions(transcript: Transcript, level: int, offset: int, owner: int) -> list[tuple[int, ...]]:
    """Return the integers of each decision (see `with_decisions`), positions counted from the batch's first token."""
    outcomes = transcript.outcomes or [DecisionOutcome(0.0, 0, False)] * transcript.num_decisions
    places = zip(transcript.utterance_starts, transcript.utterance_ends, transcript.next_state_ends, strict=True)
    return [
        (offset + start, offset + end, offset + following, level, outcome.steps, outcome.terminated, owner)
        for (start, end, following), outcome in zip(places, outcomes, strict=True)
    ]


@dataclass
class StepBatch:
    """One process's part of an optimiser step.

    `num_utterances` counts the utterances in all micro-batches of all processes: normalised by it, the update does not
    depend on how the step was split.
    """

    micro_batches: list[TranscriptBatch]  # may be empty if there are fewer transcripts than processes
    num_utterances: dict[str, int]  # level -> count over all processes

    @property
    def num_tokens(self) -> int:
        """Number of this process's tokens, without padding."""
        return sum(batch.num_tokens for batch in self.micro_batches)

    def to(self, device: torch.device, non_blocking: bool = False) -> "StepBatch":
        return StepBatch([b.to(device, non_blocking) for b in self.micro_batches], self.num_utterances)


def step_batch(
    transcripts: Sequence[Transcript],
    num_utterances: dict[str, int],
    *,
    micro_batch_tokens: int,
    pad_id: int,
    packing: bool = False,
) -> StepBatch:
    """Make the micro-batches of one process from transcripts.

    Args:
        transcripts: of this process.
        num_utterances: number of utterances of each level, over all processes.
        micro_batch_tokens: maximum tokens per micro-batch (more for a single longer transcript).
        pad_id: token id of padding.
        packing: pack sequences into rows; else one row per transcript, padded to the longest.
    """
    if packing:
        groups = pack(transcripts, micro_batch_tokens)  # one row each
        return StepBatch([collate_packed(group, pad_id, micro_batch_tokens) for group in groups], num_utterances)
    groups = split_by_tokens(transcripts, micro_batch_tokens)
    return StepBatch([collate_padded(group, pad_id) for group in groups], num_utterances)


def count_utterances(transcripts: Sequence[Transcript], levels: Sequence[str] = ()) -> dict[str, int]:
    """Count the decisions of each level.

    Args:
        transcripts: of any levels.
        levels: levels to include even without decisions.
    """
    counts = dict.fromkeys(levels, 0)
    for transcript in transcripts:
        counts[transcript.level] = counts.get(transcript.level, 0) + transcript.num_decisions
    return counts
