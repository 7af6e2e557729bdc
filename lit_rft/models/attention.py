"""Who sees whom: attention masks of our own, for caches and for completions that share a prompt."""

import contextlib
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_rft.models.backbone import (
    attention_implementation,
    caps_scores,
    causal_lm,
    final_hidden_states,
    shortest_window,
)
from lit_rft.models.blockwise_attention import causal_attention
from lit_rft.models.shared_attention import SharedPromptPlan, shared_prompt_attention, shared_prompt_plan
from lit_rft.transcripts import Transcript, TranscriptBatch, collate_padded, collate_shared

logger = logging.getLogger(__name__)


def attention_masks(
    visible: Tensor, query_positions: Tensor, key_positions: Tensor, config: Any, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """What the decoder takes as `attention_mask`, from which keys each query sees [B, T, S] (bool).

    Additive [B, 1, T, S] masks, which all attention implementations take as they are; one a layer type for models that
    mix full and sliding attention.

    Args:
        query_positions: [B, T].
        key_positions: [B, S] or [S].
    """
    layer_types = getattr(config, "layer_types", None) or ()
    keys = (key_positions if key_positions.dim() == 2 else key_positions[None])[:, None, :]
    queries = query_positions[:, :, None]

    def mask(kind: str) -> Tensor:
        if kind == "full_attention":
            return _additive(visible, dtype)
        if kind == "sliding_attention":
            return _additive(visible & (queries - keys < config.sliding_window), dtype)
        if kind == "chunked_attention":
            size = config.attention_chunk_size
            return _additive(visible & (queries // size == keys // size), dtype)
        raise ValueError(f"cannot make masks for layers of kind {kind!r}")

    if set(layer_types) - {"full_attention"}:
        return {kind: mask(kind) for kind in sorted(set(layer_types))}
    everywhere = not layer_types and getattr(config, "sliding_window", None) is not None
    return mask("sliding_attention" if everywhere else "full_attention")


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


_DECODING = "lit_rft_decoding"


def decoding_attention(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Attention that takes additive masks and is fast for single queries; what serves training comes back afterwards.

    Flash attention and the like, which take no masks, give way as well. A model in eager mode stays in it, and one that
    caps its scores is put into it.
    """
    lm = causal_lm(model)
    eager = lm.config._attn_implementation == "eager" or caps_scores(lm.config.get_text_config())
    return attention_implementation(lm, "eager" if eager else _DECODING)


def grouped_query_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one query a sequence as two batched products: keys and values are neither copied nor repeated for
    the heads that share them. Several queries go through sdpa.

    Args:
        query: [B, H, T, D].
        key, value: [B, H_kv, S, D].
        attention_mask: additive, [B, 1, T, S].
    Returns: [B, T, H, D].
    """
    if query.shape[2] > 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    batch, heads, _, size = query.shape
    grouped = query.view(batch, key.shape[1], heads // key.shape[1], size)
    scores = (grouped @ key.transpose(-1, -2)).float() * (size**-0.5 if scaling is None else scaling)
    weights = (scores + attention_mask).softmax(-1).to(value.dtype)
    return (weights @ value).view(batch, 1, heads, value.shape[-1]), None


AttentionInterface.register(_DECODING, grouped_query_attention)


def batch_hidden_states(model: nn.Module, batch: TranscriptBatch) -> Tensor:
    """Final hidden states [B, T, D] of a batch, whatever its layout."""
    if batch.segments is None:
        with causal_attention(model, batch.position_ids):
            return final_hidden_states(model, batch.input_ids, batch.position_ids)
    eager = causal_lm(model).config._attn_implementation == "eager"
    return _shared_hidden_states(model, batch, None if eager else shared_prompt_plan(batch))


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


@torch.no_grad()
def can_share_prompts(model: nn.Module) -> bool:
    """Whether a model says the same of completions that share a prompt as of separate ones: tried on a few tokens.

    Attention of another kind (recurrent, flash_attention_2, which takes no masks, ...) does not; a warning says so.
    """
    ids = list(range(3, 15))
    transcripts = []
    for start in (4, 8):
        transcript = Transcript("flat", 0)
        transcript.append_prompt(ids[:4])
        transcript.append_utterance(ids[start : start + 4])
        transcripts.append(transcript)
    lm = causal_lm(model)
    if caps_scores(lm.config.get_text_config()) and lm.config._attn_implementation != "eager":
        return _cannot(model, "its attention caps its scores")
    device = next(model.parameters()).device
    padded, shared = (b.to(device) for b in (collate_padded(transcripts, 0), collate_shared([transcripts], 0)))
    training = model.training
    model.eval()
    try:
        alone = _at_utterances(final_hidden_states(model, padded.input_ids, padded.position_ids), padded)
        plan = None if lm.config._attn_implementation == "eager" else shared_prompt_plan(shared)
        together = _at_utterances(_shared_hidden_states(model, shared, plan), shared)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, LookupError, AttributeError) as error:
        return _cannot(model, f"{type(error).__name__}: {error}")
    finally:
        model.train(training)
    if plan is not None and sum(window is not None for window in plan.windows) < _windowed_layers(lm):
        return _cannot(model, "attention is not told of its windows")
    if (alone - together).abs().max() > 0.05 * alone.abs().max():
        return _cannot(model, "it says something else of completions that share a prompt")
    return True


def _cannot(model: nn.Module, reason: str) -> bool:
    name = type(causal_lm(model)).__name__
    logger.warning("%s reads each completion's prompt anew, which is slower: %s", name, reason)
    return False


def _windowed_layers(lm: Any) -> int:
    config = lm.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return 0 if shortest_window(config) is None else sum(kind != "full_attention" for kind in kinds)


def _at_utterances(hidden: Tensor, batch: TranscriptBatch) -> Tensor:
    return hidden.flatten(0, 1)[batch.preceding[batch.utterance_mask]].float()
