"""Who sees whom: attention masks of our own, and the attention of decoding."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_rft.models.backbone import attention_implementation, caps_scores, causal_lm, is_eager


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
    eager = is_eager(model) or caps_scores(lm.config.get_text_config())
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
