"""Who sees whom: attention masks of our own, for caches and for completions that share a prompt."""

import contextlib
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_rft.models.backbone import attention_implementation, causal_lm, final_hidden_states
from lit_rft.models.blockwise_attention import causal_attention
from lit_rft.models.shared_attention import shared_prompt_attention, shared_prompt_plan
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
    window = getattr(config, "sliding_window", None)
    layer_types = set(getattr(config, "layer_types", None) or ())
    full = _additive(visible, dtype)
    if window is None or layer_types == {"full_attention"}:
        return full
    keys = key_positions if key_positions.dim() == 2 else key_positions[None]
    sliding = _additive(visible & (query_positions[:, :, None] - keys[:, None, :] < window), dtype)
    return {"full_attention": full, "sliding_attention": sliding} if layer_types else sliding


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


_DECODING = "lit_rft_decoding"


def decoding_attention(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Attention that takes additive masks and is fast for single queries; what serves training comes back afterwards.

    Flash attention and the like, which take no masks, give way as well. A model in eager mode stays in it.
    """
    lm = causal_lm(model)
    implementation = lm.config._attn_implementation
    capped = getattr(lm.config.get_text_config(), "attn_logit_softcapping", None) is not None
    # flash attention caps, sdpa and ours do not: samples are to be those of the policy that trains
    eager = implementation == "eager" or (capped and implementation != "sdpa")
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
    the heads that share them. Several queries go through sdpa; what sdpa leaves out (Gemma 2's soft capping) is left
    out here as well, so that samples are those of the policy that trains.

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
    if causal_lm(model).config._attn_implementation != "eager":
        plan = shared_prompt_plan(batch)
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
    capped = getattr(lm.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped and lm.config._attn_implementation not in ("sdpa", "eager"):
        logger.warning("%s reads each completion's prompt anew, which is slower: its attention caps its scores",
                       type(lm).__name__)  # fmt: skip
        return False
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        alone, shared = (
            _utterance_states(model, batch.to(device))
            for batch in (collate_padded(transcripts, 0), collate_shared([transcripts], 0))
        )
        same = bool((alone - shared).abs().max() <= 0.05 * alone.abs().max())
        reason = "it says something else of completions that share a prompt"
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        same, reason = False, f"{type(error).__name__}: {error}"
    finally:
        model.train(training)
    if not same:
        logger.warning(
            "%s reads each completion's prompt anew, which is slower: %s", type(causal_lm(model)).__name__, reason
        )
    return same


def _utterance_states(model: nn.Module, batch: TranscriptBatch) -> Tensor:
    hidden = batch_hidden_states(model, batch).flatten(0, 1)
    return hidden[batch.preceding[batch.utterance_mask]].float()
