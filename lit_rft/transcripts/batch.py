"""Transcripts as tensors: padded rows of similar length, or several transcripts packed into a row."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lit_rft.transcripts.transcript import LEVELS, Transcript


@dataclass
class TranscriptBatch:
    """One micro-batch. Positions are indices into the flattened [B * T] tokens.

    No attention mask: causal attention never looks at padding on the right, and `position_ids` that restart keep packed
    transcripts apart (transformers derives the block mask from them when it gets no mask and no cache).
    """

    input_ids: Tensor  # [B, T]
    position_ids: Tensor  # [B, T]
    utterance_tokens: Tensor  # [U, L] position of each utterance's tokens, 0 in padding
    utterance_mask: Tensor  # [U, L] bool
    level: Tensor  # [U] index into LEVELS
    state_ends: Tensor  # [U] position where V(s) is read
    utterance_ends: Tensor  # [U] position where Q(s, u) is read
    transcript_index: Tensor  # [U] index into episode_ids
    episode_ids: list[str]  # one a transcript
    num_tokens: int  # without padding

    def to(self, device: torch.device, non_blocking: bool = False) -> "TranscriptBatch":
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=non_blocking)
        return TranscriptBatch(**moved)


def collate_padded(transcripts: Sequence[Transcript], pad_id: int) -> TranscriptBatch:
    """One row a transcript, padded on the right to the longest."""
    return _collate([[t] for t in transcripts], pad_id)


def collate_packed(transcripts: Sequence[Transcript], pad_id: int, row_tokens: int) -> TranscriptBatch:
    """Rows of up to `row_tokens` tokens, several transcripts in each (first-fit decreasing)."""
    rows: list[list[Transcript]] = []
    room: list[int] = []
    for transcript in sorted(transcripts, key=len, reverse=True):
        row = next((i for i, free in enumerate(room) if free >= len(transcript)), None)
        if row is None:
            rows.append([])
            room.append(max(row_tokens, len(transcript)))
            row = len(rows) - 1
        rows[row].append(transcript)
        room[row] -= len(transcript)
    return _collate(rows, pad_id)


def split_by_tokens(transcripts: Sequence[Transcript], max_tokens: int) -> list[list[Transcript]]:
    """Micro-batches of at most `max_tokens` padded tokens each (a longer transcript gets one of its own), similar
    lengths together, longest first: the peak of memory comes with the first step."""
    groups: list[list[Transcript]] = []
    for transcript in sorted(transcripts, key=len, reverse=True):
        if groups and len(groups[-1][0]) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(transcript)
        else:
            groups.append([transcript])
    return groups


def _collate(rows: list[list[Transcript]], pad_id: int) -> TranscriptBatch:
    if not rows:
        raise ValueError("a batch needs at least one transcript, got none")
    width = max(sum(len(t) for t in row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    position_ids = torch.arange(width).repeat(len(rows), 1)
    spans: list[tuple[int, int]] = []
    levels: list[int] = []
    owners: list[int] = []
    episode_ids: list[str] = []
    for r, row in enumerate(rows):
        column = 0
        for transcript in row:
            end = column + len(transcript)
            input_ids[r, column:end] = torch.tensor(transcript.input_ids)
            position_ids[r, column:end] = torch.arange(len(transcript))
            offset = r * width + column
            starts_ends = zip(transcript.utterance_starts, transcript.utterance_ends, strict=True)
            spans += [(offset + start, offset + stop) for start, stop in starts_ends]
            levels += [LEVELS.index(transcript.level)] * transcript.num_decisions
            owners += [len(episode_ids)] * transcript.num_decisions
            episode_ids.append(transcript.episode_id)
            column = end
        if len(row) > 1:
            position_ids[r, column:] = torch.arange(width - column)  # padding is a sequence of its own
    starts, ends = torch.tensor(spans, dtype=torch.long).reshape(-1, 2).unbind(-1)
    steps = torch.arange(int((ends - starts).max()) + 1 if spans else 0)
    tokens = starts[:, None] + steps
    mask = tokens <= ends[:, None]
    return TranscriptBatch(
        input_ids, position_ids, tokens * mask, mask, torch.tensor(levels, dtype=torch.long), starts - 1, ends,
        torch.tensor(owners, dtype=torch.long), episode_ids, sum(len(t) for row in rows for t in row),
    )  # fmt: skip


@dataclass
class StepBatch:
    """What one process gets for one optimiser step.

    `num_utterances` counts them over all micro-batches of all processes: dividing by it makes the update independent of
    how the step was split.
    """

    micro_batches: list[TranscriptBatch]  # may be empty on a process that got nothing
    num_utterances: dict[str, int]  # level -> count over all processes

    @property
    def num_tokens(self) -> int:
        """This process's tokens, without padding."""
        return sum(batch.num_tokens for batch in self.micro_batches)

    def to(self, device: torch.device, non_blocking: bool = False) -> "StepBatch":
        return StepBatch([b.to(device, non_blocking) for b in self.micro_batches], self.num_utterances)
