"""Final hidden states of a batch, whatever its layout, and which layouts an architecture can take."""

import inspect
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lit_rft.models.attention import attention_masks
from lit_rft.models.backbone import (
    caps_scores,
    causal_lm,
    final_hidden_states,
    is_eager,
    keeps_windows_to_itself,
    sequence_spans,
    sequence_starts,
    shortest_window,
)
from lit_rft.models.blockwise_attention import block_starts, causal_attention, takes_blocks
from lit_rft.models.shared_attention import SharedPromptPlan, shared_prompt_attention, shared_prompt_plan
from lit_rft.transcripts import Transcript, TranscriptBatch, collate_packed, collate_padded, collate_shared

logger = logging.getLogger(__name__)

# what an architecture may raise that cannot take a layout
_REFUSALS = (TypeError, ValueError, RuntimeError, NotImplementedError, LookupError, AttributeError)

_EAGER_ROW = 2048

# model -> what was found
_packs: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()
_goes_by_blocks: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


def batch_hidden_states(model: nn.Module, batch: TranscriptBatch) -> Tensor:
    """Final hidden states [B, T, D] of a batch, whatever its layout."""
    if batch.segments is None:
        if len(batch.transcripts) > len(batch.input_ids) and not can_pack(model):
            return _sequence_by_sequence(model, batch)
        starts = block_starts(model, batch.position_ids)
        if starts and can_go_by_blocks(model):
            return _hidden_states_by_blocks(model, batch, starts)
        return final_hidden_states(model, batch.input_ids, batch.position_ids)
    return _shared_hidden_states(model, batch, None if is_eager(model) else shared_prompt_plan(batch))


def _shared_hidden_states(model: nn.Module, batch: TranscriptBatch, plan: SharedPromptPlan | None) -> Tensor:
    if plan is not None:
        with shared_prompt_attention(model):
            return final_hidden_states(model, batch.input_ids, batch.position_ids, shared_prompts=plan)
    # eager attention has what others leave out (soft capping): it stays, and gets a mask
    return final_hidden_states(
        model, batch.input_ids, batch.position_ids, attention_mask=_shared_masks(model, batch)  # type: ignore[arg-type]
    )  # fmt: skip


def _shared_masks(model: nn.Module, batch: TranscriptBatch) -> Tensor | dict[str, Tensor]:
    lm, segments, positions = causal_lm(model), batch.segments, batch.position_ids
    assert segments is not None
    places = torch.arange(segments.shape[1], device=segments.device)
    own, prompt = segments[:, :, None] == segments[:, None, :], segments[:, None, :] == 0
    visible = (places[:, None] >= places) & (own | prompt)
    return attention_masks(visible, positions, positions, lm.config.get_text_config(), lm.dtype)


def _sequence_by_sequence(model: nn.Module, batch: TranscriptBatch) -> Tensor:
    """A packed batch as rows of one sequence each, and back."""
    ids = batch.input_ids.flatten()
    spans = sequence_spans(sequence_starts(batch.position_ids), len(ids))
    sequences = [ids[start:end] for start, end in spans]
    return torch.cat(plain_hidden_states(model, sequences, len(ids))).view(*batch.input_ids.shape, -1)


def plain_hidden_states(model: nn.Module, sequences: Sequence[Tensor], max_tokens: int) -> list[Tensor]:
    """Final hidden states [T, D] of each sequence of ids [T], by the model as it is, in passes of `similar_lengths`."""
    states: dict[int, Tensor] = {}
    for some in similar_lengths({n: len(ids) for n, ids in enumerate(sequences)}, max_tokens):
        # what stands behind a sequence is not seen by it, in whatever way a model looks back
        rows = pad_sequence([sequences[n] for n in some], batch_first=True)
        found = final_hidden_states(model, rows, torch.arange(rows.shape[1], device=rows.device).expand_as(rows))
        states.update((n, row[: len(sequences[n])]) for n, row in zip(some, found, strict=True))
    return [states[n] for n in range(len(sequences))]


def similar_lengths(lengths: Mapping[int, int], max_tokens: int) -> list[list[int]]:
    """Names of sequences in groups of similar length, of at most `max_tokens` tokens each with padding (more for a
    single one)."""
    groups: list[list[int]] = []
    for name in sorted(lengths, key=lambda name: lengths[name]):
        group = groups[-1] if groups else None
        length = lengths[name]
        if group and length <= 2 * lengths[group[0]] and length * (len(group) + 1) <= max_tokens:
            group.append(name)
        else:
            groups.append([name])
    return groups


def longest_shared_row(model: nn.Module) -> int | None:
    """Of how many tokens a row of completions that share a prompt should be: eager attention costs its square."""
    return _EAGER_ROW if is_eager(model) else None


def can_share_prompts(model: nn.Module) -> bool:
    """Whether a model says the same of completions that share a prompt as of separate ones: tried on a few tokens.

    Attention of another kind (recurrent, flash_attention_2, which takes no masks, ...) does not; a warning says so.
    """
    lm = causal_lm(model)
    shared = collate_shared([_completions(model)], 0)
    plan = None if is_eager(model) else shared_prompt_plan(shared.to(_device(model)))
    if plan is not None and caps_scores(lm.config.get_text_config()):
        reason: str | None = "its attention caps its scores"
    else:
        reason = _layout_difference(model, shared, lambda batch: _shared_hidden_states(model, batch, plan))
        if not reason and plan is not None and sum(w is not None for w in plan.windows) < _windowed_layers(lm):
            reason = "attention is not told of its windows"
    if reason:
        name = type(lm).__name__
        logger.warning("%s reads each completion's prompt anew, which is slower: %s", name, reason)
    return not reason


def can_pack(model: nn.Module) -> bool:
    """Whether a model keeps sequences apart that stand in one row, as their positions begin anew: tried once."""
    return tried_once(_packs, model, lambda: _packing_difference(model), "%s reads packed sequences one a row: %s")


def _packing_difference(model: nn.Module) -> str | None:
    packed = collate_packed(_completions(model), 0, 64)
    return _layout_difference(model, packed, lambda b: final_hidden_states(model, b.input_ids, b.position_ids))


def can_go_by_blocks(model: nn.Module) -> bool:
    """Whether a model says the same with attention by blocks, on a CPU: tried once."""
    message = "%s keeps its own attention, which is slower on a CPU: %s"
    return tried_once(_goes_by_blocks, model, lambda: _blocks_difference(model), message)


def _blocks_difference(model: nn.Module) -> str | None:
    """With rows of one sequence each and, where the model can pack, with one row of several."""
    if not takes_blocks(model):
        return "it cannot take another"
    layouts = [collate_padded(_completions(model), 0)]
    if not _packing_difference(model):
        layouts.append(collate_packed(_completions(model), 0, 64))
    for batch in layouts:
        starts = block_starts(model, batch.position_ids)
        by_blocks = partial(_hidden_states_by_blocks, model, starts=starts)
        reason = _layout_difference(model, batch, by_blocks) if starts else None
        if reason:
            return reason
    return None


def _hidden_states_by_blocks(model: nn.Module, batch: TranscriptBatch, starts: Sequence[int]) -> Tensor:
    with causal_attention(model, starts) as told:
        return final_hidden_states(model, batch.input_ids, batch.position_ids, **told)


def tried_once(
    known: "weakref.WeakKeyDictionary[nn.Module, bool]",
    model: nn.Module,
    reason: Callable[[], str | None],
    warning: str,
) -> bool:
    """Whether a model takes a fast path.

    Args:
        known: what has been found so far.
        reason: why it does not, if so; asked once a model.
        warning: for that case, with places for the model's name and the reason.
    """
    lm = causal_lm(model)
    if lm not in known:
        found = reason()
        if found:
            logger.warning(warning, type(lm).__name__, found)
        known[lm] = not found
    return known[lm]


def _completions(model: nn.Module) -> list[Transcript]:
    """Of one prompt; in a row all but the first stand behind others, which must not change them."""
    ids = common_ids(model, 24)
    transcripts = []
    for start in range(4, 24, 5):
        transcript = Transcript("flat", 0)
        transcript.append_prompt(ids[:4])
        transcript.append_utterance(ids[start : start + 5])
        transcripts.append(transcript)
    return transcripts


def common_ids(model: nn.Module, number: int) -> list[int]:
    """Tokens to try a model with: the first ones that a tokenizer has merged, mostly. Of special tokens, which it may
    never have seen in such an order, a model in bf16 can say anything."""
    vocabulary = causal_lm(model).config.get_text_config().vocab_size
    return [(300 + n) % vocabulary for n in range(number)]


def _layout_difference(
    model: nn.Module, batch: TranscriptBatch, states: Callable[[TranscriptBatch], Tensor]
) -> str | None:
    """Why the hidden states of a batch are not those of its transcripts in rows of their own, if they are not."""
    if "position_ids" not in inspect.signature(causal_lm(model).get_decoder().forward).parameters:
        return "it takes no positions"
    batch = batch.to(_device(model))
    alone = collate_padded(batch.transcripts, 0).to(_device(model))
    return difference(
        model,
        lambda: _at_utterances(final_hidden_states(model, alone.input_ids, alone.position_ids), alone),
        lambda: _at_utterances(states(batch), batch),
    )


@torch.no_grad()
def difference(model: nn.Module, plain: Callable[[], Tensor], other: Callable[[], Tensor]) -> str | None:
    """Why another way to compute what a model says, rows [N, D], does not give what the plain one gives, if it does
    not. Only the other way may be one that the architecture refuses."""
    if keeps_windows_to_itself(causal_lm(model).config.get_text_config()):
        return "its windows count places in a row"
    training = model.training
    model.eval()
    try:
        expected = plain()
        try:
            found = other()
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            return f"{type(error).__name__}: {error}"
    finally:
        model.train(training)
        torch.clear_autocast_cache()  # what was cast here has no gradient
    exact = causal_lm(model).dtype.itemsize >= 4 and not torch.is_autocast_enabled(found.device.type)
    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    # in bf16 a single row may be anywhere
    same = errors.max() <= 1e-3 if exact else errors.quantile(0.75) <= 0.05
    return None if same else "it says something else"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _windowed_layers(lm: Any) -> int:
    config = lm.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return 0 if shortest_window(config) is None else sum(kind != "full_attention" for kind in kinds)


def _at_utterances(hidden: Tensor, batch: TranscriptBatch) -> Tensor:
    return hidden.flatten(0, 1)[batch.preceding[batch.utterance_mask]].float()
