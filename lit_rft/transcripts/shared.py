"""Shared prompts: all completions of a prompt in one row, with one prefill."""

from collections.abc import Sequence

import torch

from lit_rft.transcripts.batch import StepBatch, TranscriptBatch, collate_padded, level_names, with_decisions
from lit_rft.transcripts.transcript import Transcript


def collate_shared(rows: Sequence[Sequence[Transcript]], pad_id: int) -> TranscriptBatch:
    """Collate one row per prompt: its tokens, then each completion, which attends to the prompt and itself.

    Args:
        rows: transcripts of one decision each, those of a row with the same prompt.

    Raises:
        ValueError: For anything else.
    """
    if not rows:
        raise ValueError("a batch needs at least one transcript, got none")
    width = max(_row_length(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    position_ids = torch.zeros((len(rows), width), dtype=torch.long)
    segments = torch.full((len(rows), width), -1)  # padding attends to itself
    decisions: list[tuple[int, ...]] = []
    prompt_ends: list[int] = []
    transcripts: list[Transcript] = []
    levels = level_names([transcript for row in rows for transcript in row])
    for r, row in enumerate(rows):
        prompt = _prompt(row)
        input_ids[r, : len(prompt)] = torch.tensor(prompt)
        position_ids[r, : len(prompt)] = torch.arange(len(prompt))
        segments[r, : len(prompt)] = 0
        column = len(prompt)
        for number, transcript in enumerate(row, start=1):
            completion = transcript.utterance_ids(0)
            end = column + len(completion)
            input_ids[r, column:end] = torch.tensor(completion)
            position_ids[r, column:end] = torch.arange(len(prompt), len(prompt) + len(completion))
            segments[r, column:end] = number
            first, last = r * width + column, r * width + end - 1
            decisions.append((first, last, last, levels.index(transcript.level), 0, 0, len(transcripts)))
            prompt_ends.append(r * width + len(prompt) - 1)
            transcripts.append(transcript)
            column = end
    batch = with_decisions(input_ids, position_ids, decisions, [0.0] * len(decisions), transcripts)
    batch.state_ends = torch.tensor(prompt_ends)
    batch.preceding[:, 0] = batch.state_ends
    batch.segments = segments
    return batch


def _prompt(row: Sequence[Transcript]) -> list[int]:
    prompts = {tuple(t.input_ids[: t.utterance_starts[0]]) for t in row if t.num_decisions == 1}
    if len(prompts) != 1 or any(t.num_decisions != 1 or t.utterance_ends[0] != len(t) - 1 for t in row):
        raise ValueError(
            f"expected completions of one prompt in a row, got {len(prompts)} prompts in {len(row)} transcripts"
        )
    return list(prompts.pop())


def _row_length(row: Sequence[Transcript]) -> int:
    return row[0].utterance_starts[0] + sum(len(t) - t.utterance_starts[0] for t in row)


def split_shared(
    groups: Sequence[Sequence[Transcript]], max_tokens: int, row_tokens: int | None = None
) -> list[list[list[Transcript]]]:
    """Split groups of completions into micro-batches of rows.

    Each row holds completions of one prompt, the longest first; rows of similar length come together. The maximum holds
    for padded rows, and for padded completions without their prompts.

    Args:
        groups: completions of each prompt.
        max_tokens: maximum tokens per micro-batch (more for a single longer completion).
        row_tokens: maximum tokens per row; None for `max_tokens`.
    """
    limit = max_tokens if row_tokens is None else min(max_tokens, row_tokens)
    rows: list[list[Transcript]] = []
    for group in groups:
        row: list[Transcript] = []
        for transcript in sorted(group, key=len, reverse=True):
            if row and _padded([[*row, transcript]]) > limit:
                rows.append(row)
                row = []
            row.append(transcript)
        rows += [row] if row else []
    micro_batches: list[list[list[Transcript]]] = []
    for row in sorted(rows, key=_row_length, reverse=True):
        if micro_batches and _padded([*micro_batches[-1], row]) <= max_tokens:
            micro_batches[-1].append(row)
        else:
            micro_batches.append([row])
    return micro_batches


def _padded(rows: Sequence[Sequence[Transcript]]) -> int:
    """Return the maximum of the tokens of padded rows and of padded completions (as attention has them)."""
    lengths = [len(t) - t.utterance_starts[0] for row in rows for t in row]
    return max(len(rows) * max(map(_row_length, rows)), len(lengths) * max(lengths))


def shared_step_batch(
    groups: Sequence[Sequence[Transcript]],
    num_utterances: dict[str, int],
    *,
    micro_batch_tokens: int,
    pad_id: int,
    row_tokens: int | None = None,
) -> StepBatch:
    """Make the micro-batches of one process from groups of completions; see `step_batch` and `split_shared`.

    Rows of one completion each share nothing: they are padded, for causal attention without a mask.
    """
    parts = split_shared(groups, micro_batch_tokens, row_tokens)
    return StepBatch([_collate_part(part, pad_id) for part in parts], num_utterances)


def _collate_part(part: Sequence[Sequence[Transcript]], pad_id: int) -> TranscriptBatch:
    if all(len(row) == 1 for row in part):
        return collate_padded([transcript for row in part for transcript in row], pad_id)
    return collate_shared(part, pad_id)
