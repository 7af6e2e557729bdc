"""Comparison of a fast path with the default implementation on a few tokens, once per model."""

import inspect
import logging
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_rft.models.backbone import causal_lm, final_hidden_states, has_local_attention
from lit_rft.transcripts import COMPLETION, Transcript, TranscriptBatch, collate_padded

logger = logging.getLogger(__name__)

# errors of architectures that do not support a path
_REFUSALS = (TypeError, ValueError, RuntimeError, NotImplementedError, LookupError, AttributeError)

Verdicts = weakref.WeakKeyDictionary[nn.Module, bool]  # model -> whether it supports a path


def tried_once(verdicts: Verdicts, model: nn.Module, reason: Callable[[], str | None], warning: str) -> bool:
    """Return whether a model supports a fast path, compared on first use.

    Args:
        verdicts: the results so far.
        model: with or without adapters.
        reason: returns why the path is not supported, or None; called once per model.
        warning: a format for the model's name and the reason.
    """
    lm = causal_lm(model)
    if lm not in verdicts:
        obstacle = reason()
        if obstacle:
            logger.warning(warning, type(lm).__name__, obstacle)
        verdicts[lm] = not obstacle
    return verdicts[lm]


def sample_completions(model: nn.Module) -> list[Transcript]:
    """Make four completions of one prompt; in a shared row all but the first follow others, without an effect."""
    ids = common_ids(model, 24)
    transcripts = []
    for start in range(4, 24, 5):
        transcript = Transcript(COMPLETION, 0)
        transcript.append_prompt(ids[:4])
        transcript.append_utterance(ids[start : start + 5])
        transcripts.append(transcript)
    return transcripts


def common_ids(model: nn.Module, number: int) -> list[int]:
    """Return tokens for comparing a model's outputs: mostly the first merges of a tokenizer.

    Outputs of a bf16 model on special tokens, in an order it may never have seen, are arbitrary.
    """
    vocabulary = causal_lm(model).config.get_text_config().vocab_size
    return [(300 + n) % vocabulary for n in range(number)]


def layout_difference(
    model: nn.Module, batch: TranscriptBatch, states: Callable[[TranscriptBatch], Tensor]
) -> str | None:
    """Return why the hidden states of a batch differ from those of its transcripts in separate rows, or None.

    Args:
        model: with or without adapters.
        batch: in the layout to compare.
        states: computes its hidden states [B, T, D].
    """
    if "position_ids" not in inspect.signature(causal_lm(model).get_decoder().forward).parameters:
        return "it takes no positions"
    device = next(model.parameters()).device
    batch = batch.to(device)
    separate = collate_padded(batch.transcripts, 0).to(device)
    return difference(
        model,
        lambda: _at_utterances(final_hidden_states(model, separate.input_ids, separate.position_ids), separate),
        lambda: _at_utterances(states(batch), batch),
    )


@torch.no_grad()
def difference(model: nn.Module, default: Callable[[], Tensor], fast: Callable[[], Tensor]) -> str | None:
    """Return why a fast path's rows [N, D] differ from those of the default implementation, or None.

    Errors of unsupported architectures are accepted from the fast path only.
    """
    if has_local_attention(causal_lm(model).config.get_text_config()):
        return "its windows count places in a row"
    training = model.training
    model.eval()
    try:
        expected = default()
        try:
            actual = fast()
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            return f"{type(error).__name__}: {error}"
    finally:
        model.train(training)
        torch.clear_autocast_cache()  # casts made here have no gradient
    exact = causal_lm(model).dtype.itemsize >= 4 and not torch.is_autocast_enabled(actual.device.type)
    errors = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
    # in bf16 a single row may differ by chance
    same = errors.max() <= 1e-3 if exact else errors.quantile(0.75) <= 0.05
    return None if same else "its outputs differ"


def _at_utterances(hidden: Tensor, batch: TranscriptBatch) -> Tensor:
    return hidden.flatten(0, 1)[batch.preceding[batch.utterance_mask]].float()
