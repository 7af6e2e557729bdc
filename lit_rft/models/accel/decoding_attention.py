"""Attention of decoding: one or a few queries per sequence against its KV cache."""

import contextlib
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_rft.models.accel.switch import is_on
from lit_rft.models.backbone import attention_implementation, caps_scores, causal_lm, is_eager

_DECODING = "lit_rft_decoding"
_FEW = 8  # queries of a sequence: more are faster by sdpa


def decoding_attention(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Switch a model to attention that supports additive masks and is fast for single queries.

    Training's attention is restored afterwards. Flash attention, which does not support masks, is replaced as well.
    Models in eager mode stay in it, and models with capped scores switch to it. With this path off sdpa is used.
    """
    lm = causal_lm(model)
    if obstacle(lm):
        return attention_implementation(lm, "eager")
    return attention_implementation(lm, _DECODING if is_on(lm, "decoding_attention") else "sdpa")


def obstacle(model: nn.Module) -> str | None:
    """Return why a model decodes with eager attention, or None."""
    if is_eager(model):
        return "attention is eager"
    if caps_scores(causal_lm(model).config.get_text_config()):
        return "attention caps its scores"
    return None


def grouped_query_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention of one or a few queries per sequence as two batched products.

    Keys and values are neither copied nor repeated for the heads that share them. Many queries go through sdpa.

    Args:
        module: the attention layer.
        query: [B, H, T, D].
        key, value: [B, H_kv, S, D].
        attention_mask: additive, [B, 1, T, S].
        scaling: of the scores; default 1 / sqrt(D).
        **kwargs: ignored.

    Returns:
        [B, T, H, D], and no weights.
    """
    if query.shape[2] > _FEW or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    batch, heads, queries, size = query.shape
    shared = heads // key.shape[1]
    grouped = query.reshape(batch, key.shape[1], shared * queries, size)
    scores = (grouped @ key.transpose(-1, -2)).float() * (size**-0.5 if scaling is None else scaling)
    if queries > 1:
        attention_mask = attention_mask.repeat(1, 1, shared, 1)
    weights = (scores + attention_mask).softmax(-1).to(value.dtype)
    attended = (weights @ value).view(batch, heads, queries, value.shape[-1])
    return attended.transpose(1, 2), None


AttentionInterface.register(_DECODING, grouped_query_attention)
