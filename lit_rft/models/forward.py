"""The forward pass: final hidden states of a batch in any layout, by the fastest path that the model supports."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lit_rft.models.accel.blockwise_attention import block_starts, blockwise_hidden_states
from lit_rft.models.accel.layouts import can_attend_blockwise, can_pack
from lit_rft.models.accel.shared_prompts import shared_hidden_states, shared_prompt_plan
from lit_rft.models.accel.switch import is_on
from lit_rft.models.backbone import final_hidden_states, is_eager, sequence_spans, sequence_starts
from lit_rft.transcripts import TranscriptBatch


def hidden_states(model: nn.Module, batch: TranscriptBatch) -> Tensor:
    """Compute the final hidden states [B, T, D] of a batch in any layout.

    Layouts whose fast path is off, or unsupported by the model, are unpacked to one sequence per row.
    """
    if batch.segments is not None:
        if not is_on(model, "shared_prompts"):
            return _unshared_hidden_states(model, batch)
        return shared_hidden_states(model, batch, None if is_eager(model) else shared_prompt_plan(model, batch))
    if len(batch.transcripts) > len(batch.input_ids) and not can_pack(model):
        return _unpacked_hidden_states(model, batch)
    starts = block_starts(model, batch.position_ids)
    if starts and can_attend_blockwise(model):
        return blockwise_hidden_states(model, batch, starts)
    return final_hidden_states(model, batch.input_ids, batch.position_ids)


def _unpacked_hidden_states(model: nn.Module, batch: TranscriptBatch) -> Tensor:
    """Compute a packed batch with one sequence per row."""
    ids = batch.input_ids.flatten()
    spans = sequence_spans(sequence_starts(batch.position_ids), len(ids))
    sequences = [ids[start:end] for start, end in spans]
    return torch.cat(separate_hidden_states(model, sequences, len(ids))).view(*batch.input_ids.shape, -1)


def _unshared_hidden_states(model: nn.Module, batch: TranscriptBatch) -> Tensor:
    """Compute a batch with shared prompts with one prompt and one completion per row."""
    assert batch.segments is not None
    ids, width = batch.input_ids.flatten(), batch.input_ids.shape[1]
    sequences, targets, lengths = [], [], []
    for row, segments in enumerate(batch.segments):
        prompt = (segments == 0).nonzero().flatten() + row * width
        for n in range(1, int(segments.max()) + 1):
            completion = (segments == n).nonzero().flatten() + row * width
            sequences.append(torch.cat([prompt, completion]))
            # all sequences of a prompt have the same states there: use the first one's
            targets.append(sequences[-1] if n == 1 else completion)
            lengths.append(len(targets[-1]))
    states = separate_hidden_states(model, [ids[places] for places in sequences], len(ids))
    kept = torch.cat([state[-length:] for state, length in zip(states, lengths, strict=True)])
    hidden = kept.new_zeros(len(ids), kept.shape[-1]).index_copy(0, torch.cat(targets), kept)
    return hidden.view(*batch.input_ids.shape, -1)


def separate_hidden_states(model: nn.Module, sequences: Sequence[Tensor], max_tokens: int) -> list[Tensor]:
    """Compute the final hidden states [T, D] of each sequence of ids [T] with the default implementation.

    Args:
        model: with or without adapters.
        sequences: token ids, passed in groups of `similar_lengths`, one per row.
        max_tokens: maximum tokens per pass, padding included.
    """
    states: dict[int, Tensor] = {}
    for group in similar_lengths({n: len(ids) for n, ids in enumerate(sequences)}, max_tokens):
        # models are causal: padding on the right has no effect
        ids = pad_sequence([sequences[n] for n in group], batch_first=True)
        rows = final_hidden_states(model, ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
        states.update((n, row[: len(sequences[n])]) for n, row in zip(group, rows, strict=True))
    return [states[n] for n in range(len(sequences))]


def similar_lengths(lengths: Mapping[int, int], max_tokens: int) -> list[list[int]]:
    """Group sequences of similar length.

    Args:
        lengths: length of each sequence, by its key.
        max_tokens: maximum tokens per group, padding included (more for a single longer sequence).

    Returns:
        The keys in each group.
    """
    groups: list[list[int]] = []
    for name in sorted(lengths, key=lambda name: lengths[name]):
        group = groups[-1] if groups else None
        length = lengths[name]
        if group and length <= 2 * lengths[group[0]] and length * (len(group) + 1) <= max_tokens:
            group.append(name)
        else:
            groups.append([name])
    return groups
